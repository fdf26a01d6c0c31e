"""What the fabric is to look like: golden files, and what must hold for every card.

Whether the kernel takes it, and what it then does, is proved by tests/functional/networks.
After a wanted change: INSULA_WRITE_GOLDEN=1 ./test tests/unit/networks, then read the difference.
"""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path

import msgspec
import pytest

from insula.model.network import Firewall, NetworkSpec, Nic, Rates, Rule, parse_rule
from insula.networks import dns, naming, plan, policy, rules, segments
from insula.networks.peers import rule_counter
from insula.networks.plan import Attached, Segment

GOLDEN = Path(__file__).parent / "golden"

HOME, LAB = "0123abcd", "1a000001"
UPLINK = plan.choose_uplink(HOME, [])
NAT = NetworkSpec("nat", "10.77.0.0/24", "fd12:3456:789a:1::/64")
PRIVATE = NetworkSpec("private", "10.79.0.0/24", "fd12:3456:789a:3::/64", isolated=True)
LAN = NetworkSpec("bridge", parent="br0", vlan=7)
NIC = Nic("00c0ffee", LAB, "52:54:00:00:00:0a", "10.77.0.10", "fd12:3456:789a:1:5054:ff:fe00:a")
WEB = Attached(NIC, "web", "11111111-2222-4333-8444-555555555555", NAT)
RULES = (
    "allow to example.org tcp 443",
    "deny to 10.0.0.0/8",
    "allow to 10.77.0.11 tcp 8000-8010",
    "deny to fd00::/8 icmp",
    "deny to any 53",
    "allow from 10.77.0.12",
    "deny from any udp",
)
RULED = msgspec.structs.replace(WEB, firewall=Firewall("internet-only", True, tuple(map(parse_rule, RULES))))
SHAPED = msgspec.structs.replace(WEB, nic=msgspec.structs.replace(NIC, rates=Rates(30_000_000, 2_000_000_000)))
ON_LAN = msgspec.structs.replace(
    WEB, network=LAN, firewall=Firewall("internet-only"), nic=msgspec.structs.replace(NIC, ipv4=None, ipv6=None)
)

BEHIND = msgspec.structs.replace(WEB, segment=Segment("10.0.2.15/24", "10.0.2.2", "52:54:00:aa:bb:cc", "0a:0a:0a:0a:0a:0a"))


def batches() -> list[str]:
    """Everything that ip(8) and tc(8) are told, in the order it is."""
    parts = {
        "host, once": plan.host_links(HOME, UPLINK, "/proc/self/fd/9"),
        "host, for a network": plan.host_routes(HOME, UPLINK, NAT),
        "host, for a private network": plan.host_routes(HOME, UPLINK, PRIVATE),
        "fabric, as root": plan.fabric_links(UPLINK),
        "fabric, with pasta": plan.fabric_links(None),
        "switches": [f"{name} = {value}" for name, value in plan.fabric_sysctls().items()],
        "network": plan.network_links(LAB, NAT),
        "network, private": plan.network_links(LAB, PRIVATE),
        "host, for a bridged network": plan.lan_links(LAB, LAN, "/proc/self/fd/9"),
        "host, for a bridged network with a tag": plan.lan_tags(LAB, LAN),
        "network, bridged": plan.network_links(LAB, LAN),
        "network, bridged, without VLAN": plan.network_links(LAB, NetworkSpec("bridge", parent="br0")),
        "host, for a card on a bare card": plan.macvtap_links(LAB, LAN, NIC),
        "network, ended": plan.drop_network_links(LAB),
        "card": plan.nic_links(WEB),
        "card, shaped": [*plan.shaping_links(SHAPED), *plan.nic_shaping(SHAPED)],
        "card, no more shaped": [*plan.shaping_links(WEB), *plan.nic_shaping(WEB), *plan.drop_shaping_links(NIC.key)],
    }
    return [line for title, lines in parts.items() for line in (f"# {title}", *lines, "")]


def test_a_server_of_machines_on_several_networks_does_not_deny_what_it_does_not_know() -> None:
    alone, shared = (dns.dnsmasq_config(LAB, NAT, "/n", [], shared=each).splitlines() for each in (False, True))
    assert ["local=/insula/" in alone, "local=/insula/" in shared] == [True, False]
    assert set(shared) - set(alone) == {"server=/insula/255.255.255.255"}


def dnsmasq() -> list[str]:
    watched = dns.watched_domains([RULED, WEB])
    return [
        *dns.dnsmasq_config(LAB, NAT, "/fabric/networks/1a000001", ["192.0.2.1"], watched).splitlines(),
        "",
        "# private",
        *dns.dnsmasq_config(LAB, PRIVATE, "/fabric/networks/1a000001", ["192.0.2.1"]).splitlines(),
        "",
        "# of a card",
        *dns.card_file(WEB).splitlines(),
        *dns.names_file(WEB).splitlines(),
    ]


def segment() -> list[str]:
    return [
        *segments.pair_links(BEHIND, "/proc/self/fd/9"),
        *segments.inside_links(BEHIND),
        *[f"{name} = {value}" for name, value in segments.inside_sysctls(BEHIND).items()],
        *segments.inside_rules(BEHIND),
        *segments.inside_dnsmasq(BEHIND).splitlines(),
    ]


CASES = {
    "segment": segment,
    "links": batches,
    "dnsmasq": dnsmasq,
    "rules-base": lambda: rules.base_rules(UPLINK, ["192.0.2.7", "2001:db8::7"]),
    "rules-base-pasta": lambda: rules.base_rules(None),
    "rules-host": lambda: rules.host_rules(HOME, [NAT, PRIVATE]),
    "rules-network": lambda: [*rules.network_rules(LAB, NAT), *rules.drop_network_rules(LAB, NAT)],
    "rules-card": lambda: [*rules.nic_rules(WEB), *rules.drop_nic_rules(WEB)],
    "rules-card-ruled": lambda: rules.nic_rules(RULED),
    "rules-card-no-more-ruled": lambda: rules.nic_rules(WEB, RULED),
    "rules-card-on-lan": lambda: rules.nic_rules(ON_LAN),
}


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    path, text = GOLDEN / f"{case}.txt", "\n".join(CASES[case]()) + "\n"
    if os.environ.get("INSULA_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def test_there_is_no_golden_file_without_a_case() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


def test_names_fit_the_kernel() -> None:
    """A link's name has room for 15 characters; and ip(8) takes ``if2…``, where it is not there, for the second link."""
    makers = [naming.bridge_name, naming.tap_name, naming.shaper_name, naming.host_link, naming.lan_host_link]
    makers += [naming.lan_link, naming.lan_vlan_link, naming.macvtap_name]
    names = [maker("ffffffff") for maker in makers]
    assert all(len(name) <= 15 for name in names)
    assert len(set(names)) == len(names)
    assert not any(name.startswith("if") for name in names)


def test_a_homes_key_follows_its_real_path(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to("home")
    assert naming.home_key(tmp_path / "link") == naming.home_key(tmp_path / "home")
    assert naming.home_key(tmp_path / "home") != naming.home_key(tmp_path / "other")
    assert int(naming.home_key(tmp_path), 16) < 1 << 32


def test_uplinks_touch_nothing() -> None:
    again = plan.choose_uplink(HOME, ["0.0.0.0/0", "192.0.2.0/24", "fd00::/8"])
    assert again == UPLINK
    assert plan.choose_uplink("0123abce", []) != UPLINK
    moved = plan.choose_uplink(HOME, [f"{UPLINK.host4}/32"])
    assert moved.host4 != UPLINK.host4
    left = plan.choose_uplink(HOME, ["10.213.0.0/17"])
    assert not ip_network("10.213.0.0/17").overlaps(ip_network(f"{left.host4}/32"))
    with pytest.raises(ValueError, match="no free subnet"):
        plan.choose_uplink(HOME, ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"])
    assert plan.choose_uplink(HOME, ["10.0.0.0/8"]).host4.startswith("172.23.")


def test_a_rule_that_names_a_machine_changes_with_nobody_else() -> None:
    """Who is called so is told by the one that is: its card's own commands, and no others, hold its name."""
    called, named = (str(naming.name_mark(name)) for name in ("web", "db"))
    ruled = msgspec.structs.replace(WEB, firewall=Firewall(rules=(Rule("deny", "egress", "machine:db"),)))
    assert not any(named in command for command in rules.nic_rules(WEB))
    assert [command for command in rules.nic_rules(ruled) if named in command and "meta oifname . meta mark @named" in command]
    assert f'add element bridge insula named {{ "t00c0ffee" . {called} }}' in rules.nic_rules(WEB)
    renamed = rules.nic_rules(msgspec.structs.replace(WEB, machine="db"), WEB)
    assert f'delete element bridge insula named {{ "t00c0ffee" . {called} }}' in renamed
    assert f'add element bridge insula named {{ "t00c0ffee" . {named} }}' in renamed


def test_a_rules_counter_is_its_own_wherever_it_stands() -> None:
    rule, other = Rule("deny", "egress", "10.0.0.0/8"), Rule("allow", "egress", "10.1.0.0/16")
    assert rule_counter(rule) != rule_counter(other)
    first, last = (Firewall(rules=order) for order in ((rule, other), (other, rule)))
    held = [set(policy.holds(msgspec.structs.replace(WEB, firewall=firewall)).counters) for firewall in (first, last)]
    assert held[0] == held[1]


def test_only_a_card_in_a_segment_has_one() -> None:
    with pytest.raises(ValueError, match="00c0ffee"):
        segments.inside_links(WEB)


def test_without_rules_a_card_costs_little() -> None:
    """Hundreds of cards are loaded at once: what an ordinary one needs stays short."""
    assert len(rules.nic_rules(WEB)) < 40
    assert rules.nic_rules(WEB, WEB) == rules.nic_rules(WEB)


def test_dnsmasq_stays_who_it_is() -> None:
    """Where it is started it is who it is to be, and in a user namespace of one user there is nobody else."""
    words = dns.dnsmasq_argv("/x")
    assert words[0] == "dnsmasq"
    assert {"--user=", "--group=", "--keep-in-foreground", f"--conf-file=/x/{dns.CONFIG}"} <= set(words)
