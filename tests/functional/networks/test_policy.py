"""Profiles and rules: what a machine reaches, what reaches it, and that a change holds for what was there before it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgspec
import pytest

from insula.model.network import Profile
from insula.networks import naming
from insula.networks.policy import DOMAIN_SECONDS
from tests.functional.networks import frames
from tests.functional.networks.conftest import LAB, Town
from tests.functional.networks.lab import HOST4, LAN4, OUTSIDE4, OUTSIDE6, Guest, Node

REFUSED = ("No route to host", "Permission denied")  # how Linux tells of "prohibited by administrator", by IPv4 and IPv6
SHORT = 0.1  # seconds for what is dropped without a word; where an answer could be late, who was asked is asked too


def reaches(guest: Guest, *targets: str, port: int = 80) -> dict[str, bool]:
    """Which it gets an answer from; one that is refused must have been told so."""
    answers = {target: guest.node.connect(target, port) for target in targets}
    assert set(answers.values()) <= {"open", *REFUSED}, answers
    return {target: answer == "open" for target, answer in answers.items()}


def test_open(town: Town) -> None:
    assert all(reaches(town.a, OUTSIDE4, OUTSIDE6, LAN4, town.b.ipv4, town.b.ipv6).values())


def test_internet_only(town: Town) -> None:
    town.lab.firewall(town.a, "internet-only")
    assert reaches(town.a, OUTSIDE4, OUTSIDE6, LAN4, HOST4) == {OUTSIDE4: True, OUTSIDE6: True, LAN4: False, HOST4: False}
    for address in (town.b.ipv4, town.b.ipv6):
        assert town.a.node.connect(address, 80, SHORT) == "silent"
        assert not town.a.node.ping(address, SHORT)
    assert town.a.node.lookup("10.77.0.1", "b.insula") == [town.b.ipv4]
    assert town.lab.fabric.counter("inet", f"egress_{town.a.key}") >= 1
    assert town.lab.fabric.counter("bridge", f"egress_{town.a.key}") >= 1


def test_none(town: Town) -> None:
    town.lab.firewall(town.a, "none")
    assert not any(reaches(town.a, OUTSIDE4, OUTSIDE6, LAN4).values())
    assert town.a.node.connect(town.b.ipv4, 80, SHORT) == "silent"
    assert town.a.node.lookup("10.77.0.1", "b.insula", patience=SHORT) == ["(silent)"]
    assert town.a.node.lease(town.a.mac)["address"] == town.a.ipv4
    town.lab.firewall(town.a, "none", f"allow to {OUTSIDE4} tcp 80")
    assert reaches(town.a, OUTSIDE4, OUTSIDE6) == {OUTSIDE4: True, OUTSIDE6: False}
    assert reaches(town.a, OUTSIDE4, port=81) == {OUTSIDE4: False}
    assert town.a.node.lookup("10.77.0.1", "b.insula") == [town.b.ipv4]


def test_answers_leave_whatever_the_profile(town: Town) -> None:
    """A profile is about what a machine begins: others may still speak to it, and are answered."""
    profiles: list[Profile] = ["internet-only", "none"]
    for profile in profiles:
        town.lab.firewall(town.a, profile)
        for other, address in ((town.b.node, town.a.ipv4), (town.b.node, town.a.ipv6), (town.lab.host, town.a.ipv4)):
            assert other.connect(address, 80, flow="in") == "open"
            assert other.say("in")
            assert other.ask(address, 90) == "open"
            assert other.ping(address)


def test_the_first_rule_that_fits_decides(town: Town) -> None:
    rules = (f"allow to {OUTSIDE4} tcp 81", f"deny to {OUTSIDE4}", "deny to 2001:db8::/32 tcp 80-80")
    town.lab.firewall(town.a, "open", *rules)
    assert reaches(town.a, OUTSIDE4, OUTSIDE6, LAN4) == {OUTSIDE4: False, OUTSIDE6: False, LAN4: True}
    assert reaches(town.a, OUTSIDE4, OUTSIDE6, port=81) == {OUTSIDE4: True, OUTSIDE6: True}
    assert not town.a.node.ping(OUTSIDE4, SHORT)
    assert town.a.node.ping(OUTSIDE6)
    assert town.b.node.ping(OUTSIDE4)  # nobody else's rules changed
    counted = [town.lab.fabric.counter("inet", naming.counter_name(naming.rule_counter(rule), town.a.key)) for rule in rules]
    assert all(counted), counted


def test_protocols_are_told_apart(town: Town) -> None:
    town.lab.firewall(town.a, "open", "deny to any udp", "deny to any icmp")
    for address in (OUTSIDE4, OUTSIDE6):
        assert town.a.node.ask(address, 90) in REFUSED
        assert not town.a.node.ping(address, SHORT)
        assert town.a.node.connect(address, 80) == "open"
    town.lab.firewall(town.a, "open", "deny to any 80-89")
    assert not any(reaches(town.a, OUTSIDE4, OUTSIDE6).values())
    assert town.a.node.ask(OUTSIDE4, 90) == "open"


def test_a_new_block_ends_what_was_open(town: Town) -> None:
    """Each flow speaks, is forbidden, is dumb at once, and speaks again when it is allowed again: it was the same one."""
    a = town.a
    for address in (OUTSIDE4, OUTSIDE6, town.b.ipv4, town.b.ipv6):
        assert a.node.connect(address, 80, flow="long") == "open"
        assert a.node.say("long")
        town.lab.firewall(a, "open", f"deny to {address}")
        assert not a.node.say("long", SHORT), address
        town.lab.firewall(a, "open")
        assert a.node.connect(address, 80, flow="long") == "open"
        assert a.node.say("long")
        town.lab.firewall(a, "none")
        assert not a.node.say("long", SHORT), address
        town.lab.firewall(a, "open")


def test_who_may_begin_with_a_machine(town: Town) -> None:
    a, b, c = town.a, town.b, town.c
    town.lab.firewall(b, "open", f"allow from {a.ipv4} tcp 80", "deny from any")
    assert a.node.connect(b.ipv4, 80, flow="allowed") == "open"
    assert a.node.say("allowed")
    assert a.node.connect(b.ipv4, 81, SHORT) == "silent"
    assert a.node.connect(b.ipv6, 80, SHORT) == "silent"
    assert c.node.connect(b.ipv4, 80, SHORT) == "silent"
    assert not c.node.ping(b.ipv4, SHORT)
    assert c.node.ask(b.ipv4, 90, SHORT) == "silent"
    assert town.lab.host.connect(b.ipv4, 80) in REFUSED
    # What it begins itself is answered, by everybody.
    for address in (a.ipv4, c.ipv4, c.ipv6, OUTSIDE4, OUTSIDE6):
        assert b.node.connect(address, 80, flow="own") == "open"
        assert b.node.say("own")
        assert b.node.ping(address)
        assert b.node.ask(address, 90) == "open"
    # An answer opens nothing but itself.
    assert c.node.connect(b.ipv4, 81, SHORT) == "silent"
    town.lab.firewall(b, "open", "deny from any")
    assert not a.node.say("allowed", SHORT)


def test_a_machine_that_a_rule_names_is_it_whatever_its_addresses(town: Town) -> None:
    """Who is called so may come, go and be renamed, and make up addresses: the one that has the rule is not loaded anew."""
    another = "fd12:3456:789a:1::77"
    town.b.node.batch("ip", [f"address replace {another}/64 dev eth0 nodad"])
    town.lab.firewall(town.a, "open", "deny from machine:b tcp 80", "deny to machine:c")
    assert town.b.node.connect(town.a.ipv4, 80, SHORT) == "silent"
    assert town.b.node.connect(town.a.ipv6, 80, SHORT) == "silent"
    assert town.b.node.connect(town.a.ipv4, 81) == "open"
    assert town.c.node.connect(town.a.ipv4, 80) == "open"
    assert not town.a.node.ping(town.c.ipv4, SHORT)
    assert town.a.node.ping(town.b.ipv4)
    assert town.a.node.ping(another)
    assert town.lab.fabric.counter("bridge", naming.counter_name(naming.rule_counter("deny to machine:c"), town.a.key)) > 0
    names = {"b": "d", "c": "b"}
    for guest in (town.b, town.c):
        renamed = msgspec.structs.replace(guest.attached, machine=names[guest.attached.machine])
        town.lab.load(renamed, guest.attached)
        guest.attached = renamed
    assert town.b.node.connect(town.a.ipv4, 80) == "open"
    assert town.c.node.connect(town.a.ipv4, 80, SHORT) == "silent"
    assert town.a.node.ping(town.c.ipv4)
    for guest, name in ((town.b, "b"), (town.c, "c")):
        former = msgspec.structs.replace(guest.attached, machine=name)
        town.lab.load(former, guest.attached)
        guest.attached = former
    town.b.node.batch("ip", [f"address delete {another}/64 dev eth0"])


def test_isolated(town: Town) -> None:
    a, b, c = town.a, town.b, town.c
    town.lab.firewall(a, "open", isolated=True)
    for one, other in ((a, b), (b, a)):
        for address in (other.ipv4, other.ipv6):
            assert one.node.connect(address, 80, SHORT) in ("silent", *REFUSED)
            assert not one.node.ping(address, SHORT)
    assert a.node.ping(OUTSIDE4)
    assert a.node.ping("10.77.0.1")
    assert b.node.ping(c.ipv4)
    town.lab.firewall(a, "open")
    assert a.node.ping(b.ipv4)


def test_networks_do_not_reach_each_other(town: Town) -> None:
    for one, other in ((town.a, town.far), (town.far, town.a), (town.a, town.p), (town.p, town.a)):
        for address in (other.ipv4, other.ipv6):
            assert one.node.connect(address, 80, SHORT) == "silent"
            assert not one.node.ping(address, SHORT)
    # Nor did anything arrive: what they were sent before they sent this would have come before its answer.
    assert town.far.node.connect(OUTSIDE4, 80) == "open"
    assert town.far.node.got(80) == town.p.node.got(80) == []


def test_a_gateway_is_on_its_own_network_only(town: Town) -> None:
    """Whoever asks there for other networks' gateways is not answered; the fabric answers in the order it was asked."""
    a = town.a
    a.node.sniff("who")
    asked = ["10.78.0.1", "10.79.0.1", town.lab.uplink.inner4, town.lab.uplink.host4, "127.0.0.1", "10.77.0.1"]
    a.node.send([frames.arp(a.mac, (a.mac, a.ipv4), each) for each in asked])
    own = bytes.fromhex("0806000108000604" + "0002" + naming.bridge_mac(LAB).replace(":", "")).hex() + bytes([10, 77, 0, 1]).hex()
    assert [frame for frame in a.node.heard("who", own) if frame[24:28] == "0806" and frame[40:44] == "0002"] == []


def test_names_are_a_networks_own(town: Town) -> None:
    assert town.a.node.lookup("10.77.0.1", "b.insula") == [town.b.ipv4]
    assert town.a.node.lookup("10.77.0.1", "b.insula", "AAAA") == [town.b.ipv6]
    assert town.a.node.lookup("fd12:3456:789a:1::1", "b.insula") == [town.b.ipv4]
    assert town.a.node.lookup("10.77.0.1", "far.insula") == ["(rcode 3)"]
    assert town.far.node.lookup("10.78.0.1", "far.insula") == [town.far.ipv4]
    for server in ("10.78.0.1", "10.79.0.1", "fd12:3456:789a:2::1"):
        assert town.a.node.lookup(server, "far.insula", patience=SHORT) == ["(silent)"], server
    assert town.lab.host.lookup("10.78.0.1", "far.insula") == [town.far.ipv4]
    assert town.lab.outside.lookup("10.78.0.1", "far.insula", patience=SHORT) == ["(silent)"]


def test_private_is_private(town: Town) -> None:
    assert town.p.node.ping(town.q.ipv4)
    assert town.p.node.ping(town.q.ipv6)
    assert town.p.node.lookup("10.79.0.1", "q.insula") == [town.q.ipv4]
    town.p.node.check(["ip", "route", "replace", "default", "via", "10.79.0.1"])
    for address in (OUTSIDE4, OUTSIDE6, HOST4, town.lab.uplink.host4, town.lab.uplink.inner4):
        assert town.p.node.connect(address, 80, SHORT) != "open"
    assert town.lab.host.connect(town.p.ipv4, 80, SHORT) != "open"


def test_strangers_do_not_get_in(town: Town) -> None:
    """Somebody on the LAN who sends to our networks by way of the host is not let in, but for answers."""
    for address in (town.a.ipv4, town.a.ipv6, "10.77.0.1"):
        assert town.lab.outside.connect(address, 80, SHORT) == "silent"
        assert not town.lab.outside.ping(address, SHORT)
    assert not any(peer in (OUTSIDE4, OUTSIDE6) for peer, _ in town.a.node.got(80))


ZONE4, ZONE6 = "203.0.113.41", "2001:db8:9::41"


def _answer(town: Town, server: Node, address4: str, address6: str, running: int | None) -> int:
    """The outside's name server, from now on with these answers for www.example.org."""
    if running is not None:
        server.end(running)
    argv = [
        "dnsmasq",
        "-k",
        "-C",
        "/dev/null",
        "--user=root",
        "--group=",
        "--pid-file=",
        "--no-resolv",
        "--no-hosts",
        "--port=53",
    ]
    argv += [
        f"--host-record=www.example.org,{address4},{address6}",
        "--local-ttl=1",
        f"--listen-address={OUTSIDE4}",
        "--bind-interfaces",
    ]
    started: int = server.spawn(argv)
    while server.lookup(OUTSIDE4, "www.example.org", patience=1.0) != [address4]:
        pass
    return started


@pytest.fixture
def _zone(town: Town) -> Iterator[None]:
    """The outside has a second address of each kind for a while, and after that the fabric no rule about names."""
    own = [f"address replace {ZONE4}/24 dev eth0", f"address replace {ZONE6}/64 dev eth0 nodad"]
    town.lab.outside.batch("ip", own)
    yield
    town.lab.outside.batch("ip", [each.replace("replace", "delete").removesuffix(" nodad") for each in own])
    town.lab.firewall(town.a, "open")
    town.lab.names(LAB)


@pytest.mark.usefixtures("_zone")
def test_a_domain_rule_follows_the_names_answers(town: Town) -> None:
    a, outside = town.a, town.lab.outside
    running = _answer(town, outside, OUTSIDE4, OUTSIDE6, None)
    town.lab.firewall(a, "none", "allow to example.org tcp 80")
    town.lab.names(LAB, OUTSIDE4)
    assert not any(reaches(a, OUTSIDE4, OUTSIDE6, ZONE4).values())  # nobody has asked yet
    assert a.node.lookup("10.77.0.1", "www.example.org") == [OUTSIDE4]
    assert a.node.lookup("10.77.0.1", "www.example.org", "AAAA") == [OUTSIDE6]
    assert reaches(a, OUTSIDE4, OUTSIDE6, ZONE4) == {OUTSIDE4: True, OUTSIDE6: True, ZONE4: False}
    assert reaches(a, OUTSIDE4, port=81) == {OUTSIDE4: False}
    assert a.node.connect(OUTSIDE4, 80, flow="kept") == "open"
    # The name moves: the new address is good as soon as it was told, the old one until its time is over.
    running = _answer(town, outside, ZONE4, ZONE6, running)
    assert a.node.lookup("10.77.0.1", "www.example.org") == [ZONE4]
    assert reaches(a, ZONE4) == {ZONE4: True}
    four, six = _sets(town)
    assert {element["val"] for element in four} == {OUTSIDE4, ZONE4}
    assert all(0 < int(str(element["expires"])) <= DOMAIN_SECONDS for element in four)
    for element in (*four, *six):
        _expire(town, element["val"])
    assert reaches(a, OUTSIDE4, OUTSIDE6, ZONE4) == {OUTSIDE4: False, OUTSIDE6: False, ZONE4: False}
    assert a.node.say("kept")  # what was begun while it was the domain's goes on
    assert a.node.lookup("10.77.0.1", "www.example.org") == [ZONE4]
    assert reaches(a, OUTSIDE4, ZONE4) == {OUTSIDE4: False, ZONE4: True}
    town.lab.firewall(a, "none", "allow to example.com tcp 80")
    assert not a.node.say("kept", SHORT)
    assert reaches(a, ZONE4) == {ZONE4: False}
    # Deny, by the same way.
    town.lab.firewall(a, "open", "deny to www.example.org")
    town.lab.names(LAB, OUTSIDE4)
    assert reaches(a, ZONE4) == {ZONE4: True}
    assert a.node.lookup("10.77.0.1", "www.example.org") == [ZONE4]
    assert reaches(a, ZONE4, OUTSIDE4) == {ZONE4: False, OUTSIDE4: True}
    outside.end(running)


def _sets(town: Town) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """What the domain's sets hold."""
    found = []
    for name in naming.domain_sets(town.a.key, "example.org"):
        listing = json.loads(town.lab.fabric.check(["nft", "-j", "list", "set", "inet", naming.TABLE, name]))["nftables"]
        found.append([element["elem"] for element in listing[1]["set"].get("elem", [])])
    return found[0], found[1]


def _expire(town: Town, address: object) -> None:
    """As when its time is over."""
    name = naming.domain_sets(town.a.key, "example.org")[":" in str(address)]
    town.lab.fabric.check(["nft", "delete", "element", "inet", naming.TABLE, name, f"{{ {address} }}"])
