"""Guests that cannot be renumbered, side by side: each keeps its address, and each is another machine to all others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import pytest

from insula.model.network import NetworkSpec
from insula.networks import dns, naming, plan, segments
from insula.networks.plan import Segment
from tests.functional.networks.lab import OUTSIDE4, ROOT_OR_NOT, Guest, Lab, Node, lab

LAB = "1a000001"
MAC, GATEWAY_MAC = "52:54:00:aa:bb:cc", "0a:0a:0a:0a:0a:0a"
FOREIGN = Segment("10.0.2.15/24", "10.0.2.2", MAC, GATEWAY_MAC)
KEPT = Segment("10.77.0.50/24", "10.77.0.1", MAC, GATEWAY_MAC)  # as it had on this very network, before it was forked


@dataclass
class Twins:
    lab: Lab
    peer: Guest
    twins: list[tuple[Guest, Node]]


@pytest.fixture(scope="module", params=ROOT_OR_NOT)
def world(request: pytest.FixtureRequest) -> Iterator[Twins]:
    with lab(ordinary=request.param == "user") as made:
        made.network(LAB, NetworkSpec("nat", "10.77.0.0/24", "fd12:3456:789a:1::/64"))
        peer = made.guest("peer", LAB, 10)
        twins = [_segmented(made, number, FOREIGN) for number in (20, 21)] + [
            _segmented(made, number, KEPT) for number in (30, 31)
        ]
        made.names(LAB)
        for node in (made.outside, peer.node, *[guest.node for guest, _ in twins]):
            node.serve(80)
        yield Twins(made, peer, twins)


def _segmented(world: Lab, number: int, segment: Segment) -> tuple[Guest, Node]:
    """A guest behind a segment; it is configured as it was, with the neighbours it remembers."""
    between = world.add_node()
    guest = world.guest(f"twin{number}", LAB, number, between=between.path)
    guest.attached = msgspec.structs.replace(guest.attached, segment=segment)
    tap = naming.tap_name(guest.key)
    between.batch("ip", [f"link add {tap} type veth peer name eth0 netns {guest.node.path}"])
    for _ in range(2):
        between.batch("ip", segments.inside_links(guest.attached))
        for name, value in segments.inside_sysctls(guest.attached).items():
            assert between.write(f"/proc/sys/{name}", value), name
        between.nft(segments.inside_rules(guest.attached))
    lines = [f"link set eth0 address {MAC} up", "link set lo up", f"address add {segment.inner} dev eth0"]
    lines += [f"route add default via {segment.gateway}", f"neigh add {segment.gateway} lladdr {GATEWAY_MAC} dev eth0 nud stale"]
    guest.node.batch("ip", lines)
    return guest, between


def test_each_reaches_the_world_and_is_reached(world: Twins) -> None:
    for guest, _ in world.twins:
        assert guest.node.connect(OUTSIDE4, 80, flow="out") == "open"
        assert guest.node.say("out")
        assert guest.node.ping(world.peer.ipv4)
        assert guest.node.connect(world.peer.ipv4, 80, flow="peer") == "open"
        assert guest.node.say("peer")
        for other in (world.peer.node, world.lab.host):
            assert other.connect(guest.ipv4, 80, flow="in") == "open"
            assert other.say("in")
            assert other.ping(guest.ipv4)
    assert {peer for peer, _ in world.peer.node.got(80)} >= {guest.ipv4 for guest, _ in world.twins}


def test_twins_speak_with_each_other(world: Twins) -> None:
    for one, _ in world.twins:
        for other, _ in world.twins:
            if one is not other:
                assert one.node.connect(other.ipv4, 80, flow="twin") == "open"
                assert one.node.say("twin")


def test_names_are_found_where_they_were_asked_for(world: Twins) -> None:
    """At the resolver it knew: passt's, or its network's gateway."""
    foreign, kept = world.twins[0][0], world.twins[2][0]
    for server in ("10.0.2.2", "10.0.2.3"):
        assert foreign.node.lookup(server, "peer.insula") == [world.peer.ipv4]
    assert kept.node.lookup("10.77.0.1", "peer.insula") == [world.peer.ipv4]
    assert kept.node.lookup("10.77.0.1", "twin20.insula") == [foreign.ipv4]


def test_the_lease_is_renewed_as_it_was(world: Twins) -> None:
    for guest, between in (world.twins[0], world.twins[2]):
        segment = guest.attached.segment
        assert segment is not None
        folder = between.folder()
        between.write(f"{folder}/{dns.CONFIG}", segments.inside_dnsmasq(guest.attached))
        number = between.spawn(dns.dnsmasq_argv(folder))
        while ":67" not in between.check(["ss", "-lunH"]):
            pass
        lease = guest.node.lease(MAC)
        assert lease["address"] == segment.inner.partition("/")[0]
        assert lease["router"] == segment.gateway
        assert lease["names"] == plan.gateway4(guest.attached.network)
        inner = segment.inner.partition("/")[0]
        assert guest.node.renew(MAC, inner, segment.gateway) == inner
        between.end(number)
        between.run(["rm", "-rf", folder])


def test_its_firewall_is_that_of_its_card(world: Twins) -> None:
    guest, other = world.twins[0][0], world.twins[1][0]
    assert guest.node.connect(OUTSIDE4, 80, flow="long") == "open"
    world.lab.firewall(guest, "open", f"deny to {OUTSIDE4}", f"deny from {world.peer.ipv4}")
    assert not guest.node.say("long", 0.1)
    assert guest.node.connect(OUTSIDE4, 80) != "open"
    assert other.node.connect(OUTSIDE4, 80) == "open"
    assert world.peer.node.connect(guest.ipv4, 80, 0.1) == "silent"
    world.lab.firewall(guest, "open")


def test_what_it_makes_up_stays_inside(world: Twins) -> None:
    """An address that is not the one it keeps gets nowhere, nor does it find anything in the namespace around it."""
    guest, between = world.twins[0]
    guest.node.batch("ip", ["address add 10.0.2.99/24 dev eth0", f"route add {OUTSIDE4} via 10.0.2.2 src 10.0.2.99"])
    assert guest.node.connect(OUTSIDE4, 80, 0.1) == "silent"
    guest.node.batch("ip", [f"route delete {OUTSIDE4}", "address delete 10.0.2.99/24 dev eth0"])
    between.serve(8080)
    assert guest.node.connect("169.254.254.254", 8080, 0.1) == "silent"
    assert between.got(8080) == []
    counters = json.loads(between.check(["ip", "-json", "-6", "address"]))
    assert not any(link.get("addr_info") for link in counters)
