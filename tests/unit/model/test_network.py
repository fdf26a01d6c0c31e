"""Networks, rules, rates and ports as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.errors import UsageError
from insula.model.addresses import slaac_address
from insula.model.network import (
    Firewall,
    NetworkSpec,
    Publish,
    Rule,
    check_firewall,
    check_network,
    check_network_name,
    clash,
    format_publish,
    format_rate,
    format_rule,
    parse_ports,
    parse_publish,
    parse_rate,
    parse_rule,
    peer_kind,
)

PEERS = ["any", "10.0.0.1", "10.0.0.0/8", "fd00::1", "fd00::/8", "example.org", "a-b.c_d.example", "localhost", "machine:web"]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("allow to example.org tcp 443", Rule("allow", "egress", "example.org", "tcp", "443")),
        ("deny to 10.0.0.0/8", Rule("deny", "egress", "10.0.0.0/8")),
        ("deny from any", Rule("deny", "ingress")),
        ("allow from machine:web tcp 8000-8010", Rule("allow", "ingress", "machine:web", "tcp", "8000-8010")),
        ("deny to any icmp", Rule("deny", "egress", "any", "icmp")),
        ("deny to fd00::/8 53", Rule("deny", "egress", "fd00::/8", "any", "53")),
    ],
)
def test_rules(text: str, rule: Rule) -> None:
    assert parse_rule(text) == rule
    assert format_rule(rule) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is no rule"),
        ("allow", "is no rule"),
        ("permit to any", "is no rule"),
        ("allow for any", "is no rule"),
        ("allow to", "is no rule"),
        ("allow to 10.0.0.1/8", "host bits set"),
        ("allow to 10.0.0.300", "no address, subnet, domain or machine"),
        ("allow to -x.org", "no address, subnet, domain or machine"),
        ("allow to ex..org", "no address, subnet, domain or machine"),
        ("allow to a/b", "no address, subnet, domain or machine"),
        ("allow to ex\x1bample.org", r"'ex\\x1bample.org' is no address"),
        (
            "allow to \u212aernel.org",
            "no address, subnet, domain or machine",
        ),  # a k to who ignores case, for all but name servers
        (f"allow to {'a' * 64}.org", "no address, subnet, domain or machine"),
        ("allow to machine:", "cannot be a machine's name"),
        ("allow to machine:../x", "cannot be a machine's name"),
        ("allow from example.org", "by address only, not by domain"),
        ("deny to web.insula", "'web.insula' is a machine"),
        ("allow to any icmp 8", "icmp has no ports"),
        ("allow to any tcp 0", "'0' is no port"),
        ("allow to any tcp 65536", "'65536' is no port"),
        ("allow to any tcp 90-80", "'90-80' is no port"),
        ("allow to any tcp 80-", "'80-' is no port"),
        ("allow to any tcp http", "'http' is no port"),
        ("allow to any tcp 80 81", "'81' is more"),
    ],
)
def test_what_is_no_rule(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_rule(text)


@given(
    st.builds(
        Rule,
        st.sampled_from(["allow", "deny"]),
        st.just("egress"),
        st.sampled_from(PEERS),
        st.sampled_from(["any", "tcp", "udp"]),
        st.one_of(
            st.just(""), st.integers(1, 65535).map(str), st.integers(1, 60000).map(lambda first: f"{first}-{first + 5000}")
        ),
    )
)
def test_rules_are_read_as_they_are_written(rule: Rule) -> None:
    assert parse_rule(format_rule(rule)) == rule


def test_domains_need_a_name_server_of_ours() -> None:
    firewall = Firewall(rules=(parse_rule("deny to example.org"),))
    assert check_firewall(NetworkSpec("nat", "10.77.0.0/24"), firewall) == firewall
    with pytest.raises(UsageError, match="the LAN's name server answers"):
        check_firewall(NetworkSpec("bridge", parent="br0"), firewall)
    plain = Firewall("none", rules=(parse_rule("allow to 10.0.0.1"),))
    assert check_firewall(NetworkSpec("bridge", parent="br0"), plain) == plain


@settings(max_examples=40)
@given(st.text(max_size=40))
def test_no_text_does_worse_than_be_refused(text: str) -> None:
    for parse in (parse_rule, parse_publish, parse_rate, parse_ports, peer_kind, check_network_name):
        refusal = None
        try:
            parse(text)
        except UsageError as refused:
            refusal = refused
        assert refusal is None or (refusal.message.isprintable() and refusal.hint)


def test_kinds_of_peers() -> None:
    kinds = ["any", *["addresses"] * 4, *["domain"] * 3, "machine"]
    assert [peer_kind(peer) for peer in PEERS] == kinds


@pytest.mark.parametrize(
    ("text", "publish", "written"),
    [
        ("8080:80", Publish(8080, 80), "127.0.0.1:8080:80"),
        ("0.0.0.0:8080:80", Publish(8080, 80, "0.0.0.0"), None),
        ("[::1]:8080:80", Publish(8080, 80, "::1"), None),
        ("5353:53/udp", Publish(5353, 53, protocol="udp"), "127.0.0.1:5353:53/udp"),
        ("8080:80/tcp", Publish(8080, 80), "127.0.0.1:8080:80"),
    ],
)
def test_ports_to_publish(text: str, publish: Publish, written: str | None) -> None:
    assert parse_publish(text) == publish
    assert format_publish(publish) == (written or text)
    assert parse_publish(format_publish(publish)) == publish


@pytest.mark.parametrize(
    "text",
    [
        "",
        "80",
        ":80",
        "80:",
        ":8080:80",
        "0:80",
        "80:65536",
        "80:80/sctp",
        "80:80/",
        "::1:80:80",
        "[::1:80:80",
        "host:80:80",
        "[10.0.0.1]:80:80",
        "٣:80",
    ],
)
def test_what_is_no_port_to_publish(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_publish(text)
    assert refused.value.code == "bad_port"


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("50mbit", 50_000_000),
        ("1.5Gbit", 1_500_000_000),
        ("300k", 300_000),
        ("8000", 8000),
        ("0", 0),
        ("unlimited", 0),
        ("2 mbit", 2_000_000),
    ],
)
def test_rates(text: str, rate: int) -> None:
    assert parse_rate(text) == rate
    assert parse_rate(format_rate(rate)) == rate


@pytest.mark.parametrize("text", ["", "fast", "-5mbit", "7kbit", "101gbit", "50mb", "1.2.3mbit", "mbit", "00"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_rate(text)
    assert refused.value.code == "bad_rate"


@given(st.integers(8_000, 100_000_000_000))
def test_every_rate_can_be_written(rate: int) -> None:
    assert parse_rate(format_rate(rate)) == rate


@pytest.mark.parametrize(
    "spec",
    [
        NetworkSpec("nat", "10.77.0.0/24", "fd00:1:2:3::/64"),
        NetworkSpec("private", "192.168.7.0/29"),
        NetworkSpec("bridge", parent="br0"),
        NetworkSpec("bridge", parent="eth0", vlan=4094, isolated=True),
    ],
)
def test_networks(spec: NetworkSpec) -> None:
    assert check_network(spec) == spec


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (NetworkSpec("nat"), "needs a subnet"),
        (NetworkSpec("nat", "10.77.0.1/24"), "host bits set"),
        (NetworkSpec("nat", "10.77.0.0"), "/32 is not possible"),
        (NetworkSpec("nat", "10.77.0.0/30"), "/30 is not possible"),
        (NetworkSpec("nat", "0.0.0.0/7"), "/7 is not possible"),
        (NetworkSpec("nat", "127.0.0.0/24"), "cannot have addresses"),
        (NetworkSpec("nat", "224.0.0.0/24"), "cannot have addresses"),
        (NetworkSpec("nat", "169.254.1.0/24"), "cannot have addresses"),
        (NetworkSpec("nat", "fd00::/64"), "no IPv4 subnet"),
        (NetworkSpec("nat", "10.77.0.0/24", "2001:db8::/64"), "no unique local /64"),
        (NetworkSpec("nat", "10.77.0.0/24", "fd00::/48"), "no unique local /64"),
        (NetworkSpec("nat", "10.77.0.0/24", "10.0.0.0/24"), "no IPv6 subnet"),
        (NetworkSpec("nat", "10.77.0.0/24", parent="eth0"), "on no card"),
        (NetworkSpec("private", "10.77.0.0/24", vlan=5), "on no card"),
        (NetworkSpec("bridge"), "needs a bridge or network card"),
        (NetworkSpec("bridge", "10.77.0.0/24", parent="br0"), "addresses of the LAN"),
        (NetworkSpec("bridge", parent="br0", vlan=4095), "no VLAN tag"),
        (NetworkSpec("bridge", parent="br0", vlan=0), "no VLAN tag"),
    ],
)
def test_what_is_no_network(spec: NetworkSpec, why: str) -> None:
    with pytest.raises(UsageError, match=why) as refused:
        check_network(spec)
    assert refused.value.code == "bad_network"


@pytest.mark.parametrize("name", ["nat", "a", "my-lab-2", "x" * 32])
def test_names_of_networks(name: str) -> None:
    assert check_network_name(name) == name


@pytest.mark.parametrize("name", ["", "none", "Lab", "-lab", "lab-", "1lab", "x" * 33, "../x", "a/b", "lab\n", "läb"])
def test_what_is_no_name_of_a_network(name: str) -> None:
    with pytest.raises(UsageError):
        check_network_name(name)


def test_the_address_a_card_gives_itself() -> None:
    """The example of RFC 4291, appendix A."""
    assert slaac_address("fe80::/64", "34:56:78:9a:bc:de") == "fe80::3656:78ff:fe9a:bcde"


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ("80:80", "80:81", False),
        ("80:80", "127.0.0.1:80:8080", False),
        ("0.0.0.0:80:80", "80:80", False),
        ("80:80", "0.0.0.0:80:80", False),
        ("[::]:80:80", "[::1]:80:80", False),
        ("[fd00::1]:80:80", "[::]:80:80", False),
        ("0.0.0.0:80:80", "[::]:80:80", True),
        ("80:80", "[::]:80:80", True),
        ("80:80", "80:80/udp", True),
        ("80:80", "81:80", True),
        ("127.0.0.1:80:80", "127.0.0.2:80:80", True),
        ("[::1]:80:80", "0.0.0.0:80:80", True),
    ],
)
def test_ports_that_cannot_both_be_listened_on_clash(one: str, other: str, both: bool) -> None:
    """As the kernel has it: sockets for it are made, each for its own kind of addresses only."""
    assert clash(parse_publish(one), parse_publish(other)) is not both
    assert clash(parse_publish(other), parse_publish(one)) is not both
