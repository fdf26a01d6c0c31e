"""Loading rules again changes nothing, loading and dropping leaves nothing, and what somebody changed by hand is put right."""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgspec
import pytest

from insula.model.network import Firewall, NetworkSpec, Rates, parse_rule
from insula.networks import naming, plan, rules
from insula.networks.plan import Attached
from tests.functional.networks.lab import HOME, ROOT_OR_NOT, Guest, Lab, lab

LAB = "1a000001"
NAT = NetworkSpec("nat", "10.77.0.0/24", "fd12:3456:789a:1::/64")
RULES = (
    "allow to example.org tcp 443",
    "deny to www.example.org",
    "deny to 10.0.0.0/8",
    "allow to 10.77.0.11 tcp 8000-8010",
    "deny to fd00::/8 icmp",
    "deny to any 53",
    "allow from 10.77.0.12",
    "deny from any udp",
)
FIREWALLS = [
    Firewall(),
    Firewall("internet-only", True, tuple(map(parse_rule, RULES))),
    Firewall("none"),
    Firewall("open", False, tuple(map(parse_rule, RULES[2:5]))),
    Firewall("none", True, tuple(map(parse_rule, RULES[:1]))),
]


@pytest.fixture(scope="module", params=ROOT_OR_NOT)
def world(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with lab(ordinary=request.param == "user") as made:
        made.network(LAB, NAT)
        yield made


def ruleset(world: Lab) -> list[str]:
    """In an order of its own: elements and chains come in the order they were made."""
    return sorted(map(str, world.fabric.ruleset()))


def test_all_may_be_loaded_again(world: Lab) -> None:
    before = world.fabric.ruleset()
    world.fabric.nft(world.base())
    world.fabric.nft(rules.network_rules(LAB, NAT))
    assert world.fabric.ruleset() == before
    attached = world.guest("again", LAB, 10).attached
    for firewall in FIREWALLS:
        former, attached = attached, msgspec.structs.replace(attached, firewall=firewall)
        world.load(attached, former)
        once = world.fabric.ruleset()
        world.load(attached)
        world.load(attached, attached)
        assert world.fabric.ruleset() == once
    _leave(world, attached)


def _leave(world: Lab, attached: Attached) -> None:
    """The guest that came last goes."""
    guest = world.guests.pop()
    world.fabric.nft(rules.drop_nic_rules(attached))
    world.fabric.batch("ip", [f"link delete {naming.tap_name(guest.key)}"])


def test_from_any_firewall_to_any_other_nothing_is_left(world: Lab) -> None:
    """What is loaded last is all there is, whatever was there before; and dropping it leaves nothing, twice."""
    empty = ruleset(world)
    attached = world.guest("other", LAB, 11).attached
    fresh = []
    for firewall in FIREWALLS:
        world.fabric.nft(rules.drop_nic_rules(attached))
        attached = msgspec.structs.replace(attached, firewall=firewall)
        world.load(attached)
        fresh.append(ruleset(world))
    for start, former in enumerate(FIREWALLS):
        for end, firewall in enumerate(FIREWALLS):
            one = msgspec.structs.replace(attached, firewall=former)
            other = msgspec.structs.replace(attached, firewall=firewall)
            world.load(one, attached)
            world.load(other, one)
            attached = other
            assert ruleset(world) == fresh[end], (start, end)
    moved = msgspec.structs.replace(attached, nic=msgspec.structs.replace(attached.nic, ipv4="10.77.0.99"))
    world.load(moved, attached)
    assert "10.77.0.11'" not in str(world.fabric.ruleset())
    for _ in range(2):
        world.fabric.nft(rules.drop_nic_rules(moved))
        assert ruleset(world) == empty
    _leave(world, moved)


def test_one_cards_rules_leave_anothers_alone(world: Lab) -> None:
    first = world.guest("first", LAB, 12).attached
    alone = ruleset(world)
    second = world.guest("second", LAB, 13, FIREWALLS[1]).attached
    world.fabric.nft(rules.drop_nic_rules(second))
    assert ruleset(world) == alone
    _leave(world, second)
    _leave(world, first)


def test_what_was_changed_by_hand_is_put_right(world: Lab) -> None:
    guests = [world.guest(f"g{number}", LAB, number, FIREWALLS[number % len(FIREWALLS)]) for number in range(20, 26)]
    everything = rules.everything(world.uplink, _host(world), {LAB: NAT}, [guest.attached for guest in guests])
    world.fabric.nft(everything)
    wanted = ruleset(world)
    vandal = [
        "flush chain bridge insula guard",
        f"flush chain bridge insula egress_{guests[1].key}",
        "flush chain inet insula forward",
        "add rule inet insula input accept",
        f"delete element bridge insula spoofed {{ {naming.tap_name(guests[1].key)} }}",
        f"add element inet insula nats {{ {naming.bridge_name('deadbeef')} }}",
        f"delete element inet insula egress {{ {naming.mark(guests[2].key)} }}",
        f"add element bridge insula isolated {{ {naming.tap_name(guests[3].key)} }}",
        "add chain inet insula stranger",
    ]
    world.fabric.check(["nft", "-f", "-"], "\n".join(vandal) + "\n")
    assert ruleset(world) != wanted
    world.fabric.nft(everything)
    assert ruleset(world) == wanted
    for guest in reversed(guests):
        _leave(world, guest.attached)


def _host(world: Lab) -> list[str]:
    return [world.uplink.host4, world.uplink.host6]


def test_others_rules_on_the_host_stay(world: Lab) -> None:
    """Only the one table that is ours is ever replaced or removed."""
    theirs = "table inet firewalld { chain forward { type filter hook forward priority 0; policy accept; counter; }; }\n"
    world.host.check(["nft", "-f", "-"], theirs)
    world.host.nft(rules.drop_host_rules(HOME))
    without = world.host.ruleset()
    for _ in range(2):
        world.host.nft(rules.host_rules(HOME, [NAT]))
    assert len(world.host.ruleset()) > len(without)
    for _ in range(2):
        world.host.nft(rules.drop_host_rules(HOME))
        assert world.host.ruleset() == without
    world.host.check(["nft", "delete table inet firewalld"])
    world.host.nft(rules.host_rules(HOME, world.networks.values()))


def test_links_may_be_made_again(world: Lab) -> None:
    def links() -> list[object]:
        listing = json.loads(world.fabric.check(["ip", "-json", "-details", "address", "show"]))
        names = ("ifindex", "ifname", "address", "mtu", "master", "inet6_addr_gen_mode")
        return [[{name: link.get(name) for name in names}, link["addr_info"]] for link in listing if _lasting(link)]

    before = links()
    world.fabric.batch("ip", [*plan.fabric_links(world.uplink), *plan.network_links(LAB, NAT)], tolerated="File exists")
    assert links() == before


def _lasting(link: dict[str, object]) -> bool:
    """Whether it is none of a guest: what a guest's end tells changes by itself."""
    return not str(link["ifname"]).startswith("t")


def shaped(guest: Guest, up: int, down: int) -> Guest:
    nic = msgspec.structs.replace(guest.attached.nic, rates=Rates(up, down))
    guest.attached = msgspec.structs.replace(guest.attached, nic=nic)
    return guest


def test_rates_are_set_changed_and_taken_away(world: Lab) -> None:
    guest = world.guest("shaped", LAB, 30)

    def apply(up: int, down: int) -> dict[str, int]:
        """The rates there are then, in bytes per second, by link."""
        shaped(guest, up, down)
        world.fabric.batch("ip", plan.shaping_links(guest.attached), tolerated="File exists")
        for _ in range(2):
            world.fabric.batch("tc", plan.nic_shaping(guest.attached))
        queues = json.loads(world.fabric.check(["tc", "-json", "qdisc", "show"]))
        return {queue["dev"]: queue["options"]["rate"] for queue in queues if queue["kind"] == "tbf"}

    tap, shaper = naming.tap_name(guest.key), naming.shaper_name(guest.key)
    assert apply(8_000_000, 16_000_000) == {shaper: 1_000_000, tap: 2_000_000}
    assert guest.node.ping("10.77.0.1")
    assert apply(1_000_000, 0) == {shaper: 125_000}
    assert guest.node.ping("10.77.0.1")
    assert _sent(world, shaper) > 0  # what it sends is led that way
    assert apply(0, 0).keys() == {shaper}
    assert guest.node.ping("10.77.0.1")
    world.fabric.batch("ip", plan.drop_shaping_links(guest.key))
    assert [queue["kind"] for queue in json.loads(world.fabric.check(["tc", "-json", "qdisc", "show", "dev", tap]))] == [
        "pfifo_fast"
    ]
    _leave(world, guest.attached)


def _sent(world: Lab, link: str) -> int:
    return int(
        json.loads(world.fabric.check(["ip", "-json", "-statistics", "link", "show", link]))[0]["stats64"]["tx"]["packets"]
    )
