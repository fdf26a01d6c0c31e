from __future__ import annotations

from insula.networks.passt import parse_resolvers, passt_argv


def test_resolvers_a_guest_can_ask() -> None:
    text = "# comment\nsearch example.org\nnameserver 192.0.2.1\nnameserver  198.51.100.7 # second\n"
    text += "nameserver\nnameserver nonsense\n"
    assert parse_resolvers(text) == ["192.0.2.1", "198.51.100.7"]


def test_a_stub_on_the_host_is_none() -> None:
    assert parse_resolvers("nameserver 127.0.0.53\nnameserver 127.0.0.1\nnameserver 0.0.0.0\nnameserver ::1\n") == []


def test_three_are_enough() -> None:
    assert len(parse_resolvers("".join(f"nameserver 192.0.2.{number}\n" for number in range(9)))) == 3


def test_the_guest_never_meets_the_hosts_loopback() -> None:
    for resolvers in ([], ["192.0.2.1"]):
        words = passt_argv(7, resolvers, 1000000001)
        assert "--no-map-gw" in words
        assert words[words.index("--tcp-ports") + 1] == "none"
        assert words[words.index("--udp-ports") + 1] == "none"


def test_as_root_it_is_somebody_else() -> None:
    words = passt_argv(7, [], 1000000001)
    assert "--reuid=1000000001" in words[: words.index("--")]
    assert not [word for word in passt_argv(7, [], None) if word.startswith("--reuid")]


def test_names_are_forwarded_only_where_the_guest_cannot_ask_itself() -> None:
    assert "--dns-forward" not in passt_argv(7, ["192.0.2.1"], None)
    assert passt_argv(7, [], None)[-2:] == ["--dns-forward", "10.0.2.3"]
