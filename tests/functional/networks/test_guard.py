"""At each card: who is honest is heard, and nothing passes of who is not."""

from __future__ import annotations

import secrets

import pytest

from insula.model.network import Profile
from insula.networks import naming, rules
from tests.functional.networks import frames
from tests.functional.networks.conftest import LAB, Town
from tests.functional.networks.lab import OUTSIDE4, OUTSIDE6, Guest, Lab

GATEWAY4, GATEWAY6 = "10.77.0.1", "fd12:3456:789a:1::1"
GATEWAY_MAC = naming.bridge_mac(LAB)


def test_honest_machines_are_heard(town: Town) -> None:
    a, b = town.a, town.b
    for address in (GATEWAY4, GATEWAY6, b.ipv4, b.ipv6, OUTSIDE4, OUTSIDE6):
        assert a.node.ping(address), address
    for address in (b.ipv4, b.ipv6, OUTSIDE4, OUTSIDE6):
        assert a.node.connect(address, 80, flow=address) == "open", address
        assert a.node.say(address), address
        assert a.node.ask(address, 90) == "open", address
    assert town.lab.host.ping(a.ipv4)
    assert town.lab.host.ping(a.ipv6)
    assert town.lab.host.connect(a.ipv4, 80) == "open"


def test_each_gets_its_own_lease(town: Town) -> None:
    expected = {"mask": "255.255.255.0", "router": GATEWAY4, "names": GATEWAY4, "server": GATEWAY4}
    assert town.a.node.lease(town.a.mac) == expected | {"address": town.a.ipv4}
    assert town.b.node.lease(town.b.mac) == expected | {"address": town.b.ipv4}
    private = town.p.node.lease(town.p.mac)
    assert private["address"] == town.p.ipv4
    assert "router" not in private  # it leads nowhere


def test_ipv6_comes_of_itself(town: Town) -> None:
    """A guest that does nothing has its address and its way out by the router's advertisements."""
    guest = town.lab.guest("late", LAB, 20 + secrets.randbelow(200), configured=False)
    assert guest.node.await_address("fd12:") == guest.ipv6
    assert guest.node.ping(OUTSIDE6)


def test_addresses_made_up_belong_to_the_first(town: Town) -> None:
    """Privacy addresses work, and cannot be taken over."""
    own = f"fd12:3456:789a:1::{secrets.token_hex(2)}:77"
    town.b.node.check(["ip", "address", "add", f"{own}/64", "dev", "eth0", "nodad"])
    assert town.b.node.ping(GATEWAY6)
    town.b.node.check(["ip", "route", "add", f"{town.c.ipv6}/128", "dev", "eth0", "src", own])
    assert town.b.node.ping(town.c.ipv6)
    assert town.c.node.ping(own)
    stolen = frames.udp6((town.a.mac, town.c.mac), (own, town.c.ipv6), (1, 90), b"stolen")
    forged = frames.advertisement((town.a.mac, town.c.mac), (town.a.ipv6, town.c.ipv6), own, town.a.mac)
    _nothing_passes(town.lab, town.a, town.c, [stolen, forged])
    town.b.node.check(["ip", "route", "del", f"{town.c.ipv6}/128"])
    town.b.node.check(["ip", "address", "del", f"{own}/64", "dev", "eth0"])


def test_nobody_takes_all_addresses(town: Town) -> None:
    """What one card can claim at once is bounded, and its greed takes nothing from others."""
    a, c = town.a, town.c
    wanted = [f"fd12:3456:789a:1:{secrets.token_hex(2)}::{number}" for number in range(64)]
    greedy = [frames.udp6((a.mac, c.mac), (address, c.ipv6), (1, 90), b"mine") for address in wanted]
    modest = [
        frames.udp6((town.b.mac, c.mac), (f"fd12:3456:789a:1:b::{number}", c.ipv6), (1, 90), b"mine") for number in range(2)
    ]
    spoofed = naming.counter_name("spoofed", a.key)
    before = town.lab.fabric.counter("bridge", spoofed)
    for sender, claims in ((a, greedy), (town.b, modest)):
        c.node.sniff("claims")
        honest = frames.arp(sender.mac, (sender.mac, sender.ipv4), f"10.77.0.{100 + secrets.randbelow(100)}")
        sender.node.send([*claims, honest])
        heard = [frame for frame in c.node.heard("claims", honest[12:]) if frame in claims]
        if sender is a:
            assert 0 < len(heard) < len(greedy)
            assert town.lab.fabric.counter("bridge", spoofed) == before + len(greedy) - len(heard)
        else:
            assert heard == modest


def _lies(a: Guest, b: Guest) -> dict[str, str]:
    """What ``a`` may try on ``b``, who could be deceived by each."""
    pair, link_local = (a.mac, b.mac), naming.link_local(a.mac)
    fake = "52:54:00:66:66:66"
    honest = frames.udp4(pair, (a.ipv4, b.ipv4), (1, 90), b"tagged")
    return {
        "another's hardware address": frames.arp(b.mac, (b.mac, b.ipv4), "10.77.0.99"),
        "a made-up hardware address": frames.udp4((fake, b.mac), (a.ipv4, b.ipv4), (1, 90), b"x"),
        "another's address": frames.udp4(pair, ("10.77.0.12", b.ipv4), (1, 90), b"x"),
        "an address of nobody": frames.udp4(pair, ("8.8.8.8", b.ipv4), (1, 90), b"x"),
        "the gateway, gratuitously": frames.arp(a.mac, (a.mac, GATEWAY4), GATEWAY4, reply=True),
        "the gateway, to one": frames.arp(a.mac, (a.mac, GATEWAY4), b.ipv4, reply=True, destination=b.mac),
        "the gateway's hardware address within": frames.arp(a.mac, (GATEWAY_MAC, a.ipv4), b.ipv4, reply=True),
        "a DHCP server": frames.udp4((a.mac, frames.EVERYBODY), (a.ipv4, "255.255.255.255"), (67, 68), b"offer"),
        "a DHCP server without address": frames.udp4((a.mac, frames.EVERYBODY), ("0.0.0.0", "255.255.255.255"), (67, 68), b"o"),
        "another's IPv6 address": frames.udp6(pair, ("fd12:3456:789a:1:5054:ff:fe00:1a0c", b.ipv6), (1, 90), b"x"),
        "an IPv6 address of elsewhere": frames.udp6(pair, ("2001:db8::1", b.ipv6), (1, 90), b"x"),
        "another's link-local address": frames.udp6(pair, (naming.link_local(b.mac), b.ipv6), (1, 90), b"x"),
        "the gateway, by advertisement": frames.advertisement(pair, (a.ipv6, b.ipv6), GATEWAY6, a.mac),
        "the gateway, from its address": frames.advertisement(pair, (GATEWAY6, b.ipv6), GATEWAY6, a.mac),
        "a neighbour, by advertisement": frames.advertisement(
            pair, (a.ipv6, b.ipv6), "fd12:3456:789a:1:5054:ff:fe00:1a0c", a.mac
        ),
        "a router": frames.router((a.mac, frames.ALL_NODES), link_local),
        "a DHCPv6 server": frames.udp6((a.mac, frames.ALL_NODES), (link_local, "ff02::1"), (547, 546), b"offer"),
        "a redirect": frames.icmp6(pair, (link_local, b.ipv6), 137, bytes(36)),
        "a VLAN": frames.tagged(honest, 5),
        "another protocol": frames.ethernet(b.mac, a.mac, 0x88CC, bytes(46)),
    }


def test_lies_do_not_pass(town: Town) -> None:
    _nothing_passes(town.lab, town.a, town.b, list(_lies(town.a, town.b).values()))


@pytest.mark.parametrize("lie", ["a VLAN", "another's address", "a router"])
def test_the_lies_would_be_heard_if_nobody_watched(town: Town, lie: str) -> None:
    """Proves the test above: with its guard told to look away, what it sends arrives."""
    a, b = town.a, town.b
    accept = ["nft", "insert", "rule", "bridge", naming.TABLE, "guard", "iifname", naming.tap_name(a.key), "accept"]
    town.lab.fabric.check(accept)
    try:
        with pytest.raises(AssertionError):
            _nothing_passes(town.lab, a, b, [_lies(a, b)[lie]])
    finally:
        town.lab.fabric.nft(town.lab.base())
    _nothing_passes(town.lab, a, b, [_lies(a, b)[lie]])


def _nothing_passes(lab: Lab, sender: Guest, neighbour: Guest, lies: list[str]) -> None:
    """Frames arrive in the order they are sent: when an honest one has come that was sent last, none else will."""
    spoofed = naming.counter_name("spoofed", sender.key)
    before = lab.fabric.counter("bridge", spoofed)
    neighbour.node.sniff("lies")
    lab.fabric.sniff("lies", naming.bridge_name(LAB))
    target = f"10.77.0.{100 + secrets.randbelow(100)}"
    honest = frames.arp(sender.mac, (sender.mac, sender.ipv4), target)
    sender.node.send([*lies, honest])
    until = honest[12:]  # all after the destination
    for node in (neighbour.node, lab.fabric):
        came = [frame for frame in node.heard("lies", until) if frame in lies]
        assert came == []
    assert lab.fabric.counter("bridge", spoofed) == before + len(lies)


def test_a_tap_without_a_guard_is_deaf_and_dumb_outwards(town: Town) -> None:
    """Between a tap's making and the loading of its rules nothing passes it."""
    fabric, key = town.lab.fabric, f"{secrets.randbits(32):08x}"
    tap = naming.tap_name(key)
    fabric.batch("ip", [f"link add {tap} type veth peer name raw{key[:4]}", f"link set raw{key[:4]} up"])
    fabric.batch("ip", [f"link set {tap} master {naming.bridge_name(LAB)} up"])
    town.b.node.sniff("unguarded")
    mac = "52:54:00:77:77:77"
    fabric.send([frames.arp(mac, (mac, "10.77.0.77"), "10.77.0.1")], f"raw{key[:4]}")
    honest = frames.arp(town.a.mac, (town.a.mac, town.a.ipv4), "10.77.0.98")
    town.a.node.send([honest])
    assert [frame for frame in town.b.node.heard("unguarded", honest[12:]) if mac.replace(":", "") in frame] == []
    fabric.batch("ip", [f"link delete {tap}"])


def test_a_scan_of_the_host_finds_nothing(town: Town) -> None:
    """Services listen on the host and in the fabric, on all addresses; a machine is answered by none of them."""
    a, uplink = town.a, town.lab.uplink
    addresses = [GATEWAY4, GATEWAY6, "10.78.0.1", "fd12:3456:789a:2::1", uplink.host4, uplink.inner4, uplink.host6, uplink.inner6]
    addresses += ["203.0.113.1", "192.168.50.1", "2001:db8:9::1"]
    # Addresses the host got since the fabric's rules were loaded: there its own table is the wall.
    newer = ["address replace 203.0.113.2/24 dev wan0", "address replace 2001:db8:9::2/64 dev wan0 nodad"]
    town.lab.host.batch("ip", newer)
    addresses += ["203.0.113.2", "2001:db8:9::2"]
    profiles: list[Profile] = ["open", "internet-only", "none"]
    for profile in profiles:
        town.lab.firewall(a, profile)
        a.node.sniff("scan")
        for address in addresses:
            a.node.knock(address, [22, 80, 81, 111, 443, 2049, 8080])
            assert a.node.ask(address, 90, patience=0.05) != "open"
        assert a.node.ping(GATEWAY4)  # what answers is sent in the order of what was asked
        marker = frames.arp(town.b.mac, (town.b.mac, town.b.ipv4), "10.77.0.97")
        town.b.node.send([marker])
        answers = [frame for frame in a.node.heard("scan", marker[12:]) if _is_answer(frame)]
        assert answers == []
        # What went by the fabric to the host was dropped there before what came later was answered.
        reached = a.node.connect(OUTSIDE4, 80)
        assert reached == "open" if profile != "none" else reached != "open"
    assert town.lab.host.got(80) + town.lab.host.got(81) == []
    town.lab.host.batch("ip", [each.replace("replace", "delete").removesuffix(" nodad") for each in newer])
    assert town.lab.host.connect(uplink.host4, 80) == "open"  # there was something to find


def _is_answer(frame: str) -> bool:
    """Whether it is TCP or UDP, by IPv4 or IPv6."""
    raw = bytes.fromhex(frame)
    kind = int.from_bytes(raw[12:14], "big")
    return (kind == frames.IPV4 and raw[23] in (6, 17)) or (kind == frames.IPV6 and raw[20] in (6, 17))


def test_dropping_a_card_shuts_it_up(town: Town) -> None:
    guest = town.lab.guest("leaving", LAB, 250)
    assert guest.node.ping(GATEWAY4)
    before = town.lab.fabric.ruleset()
    town.lab.fabric.nft(rules.drop_nic_rules(guest.attached))
    assert not guest.node.ping(GATEWAY4, 0.2)
    town.lab.load(guest.attached)
    assert sorted(map(str, town.lab.fabric.ruleset())) == sorted(map(str, before))
    assert guest.node.ping(GATEWAY4)
    town.lab.fabric.nft(rules.drop_nic_rules(guest.attached))
    town.lab.guests.remove(guest)
    town.lab.fabric.batch("ip", [f"link delete {naming.tap_name(guest.key)}"])
