"""On the host's LAN: machines are devices of their own there, with the LAN's own DHCP, and still lie to nobody."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from insula.model.network import NetworkSpec
from insula.networks import naming, plan
from tests.functional.networks import frames
from tests.functional.networks.lab import ROOT_OR_NOT, Guest, Lab, Node, lab

LAN = "5e000001"
SERVER = "192.168.60.1"


@dataclass
class Lan:
    """A switch that the host is on, a device on it that has the DHCP server, and two machines."""

    lab: Lab
    device: Node
    a: Guest
    b: Guest


@pytest.fixture(scope="module", params=ROOT_OR_NOT)
def lan(request: pytest.FixtureRequest) -> Iterator[Lan]:
    with lab(ordinary=request.param == "user") as world:
        device = world.add_node()
        world.host.batch("ip", ["link add br0 type bridge", f"link add d0 type veth peer name eth0 netns {device.path}"])
        world.host.batch("ip", ["link set d0 master br0 up", "link set br0 up"])
        device.batch("ip", ["link set lo up", "link set eth0 up", f"address add {SERVER}/24 dev eth0"])
        words = ["dnsmasq", "-k", "-C", "/dev/null", "--user=", "--group=", "--pid-file=", "--port=0", "--leasefile-ro"]
        device.spawn([*words, "--dhcp-authoritative", "--no-ping", "--dhcp-range=192.168.60.50,192.168.60.99,1h"])
        spec = NetworkSpec("bridge", parent="br0")
        world.host.batch("ip", plan.lan_links(LAN, spec, world.fabric.path))
        world.network(LAN, spec)
        yield Lan(world, device, world.guest("a", LAN, 10), world.guest("b", LAN, 11))


def _join(guest: Guest) -> str:
    """The address the LAN gives, taken. A client asks again when nobody answers."""
    leases = (guest.node.lease(guest.mac) for _ in range(4))
    address = next(lease for lease in leases if lease)["address"]
    assert address.startswith("192.168.60.")
    guest.node.batch("ip", [f"address replace {address}/24 dev eth0"])
    return str(address)


def test_machines_are_devices_of_the_lan(lan: Lan) -> None:
    a, b = _join(lan.a), _join(lan.b)
    assert a != b
    for node in (lan.device, lan.b.node):
        assert node.ping(a)
    assert lan.a.node.ping(SERVER)
    lan.lab.host.batch("ip", ["address replace 192.168.60.2/24 dev br0"])
    assert lan.lab.host.ping(a)  # over a bridge the host is a device as any other
    lan.lab.host.batch("ip", ["address delete 192.168.60.2/24 dev br0"])


def _is_lied_about(lan: Lan, lies: list[str]) -> None:
    """None of what ``a`` sends reaches the LAN or its neighbour; each is counted."""
    counter = naming.counter_name("spoofed", lan.a.key)
    before = lan.lab.fabric.counter("bridge", counter)
    for node in (lan.device, lan.b.node):
        node.sniff("lies")
    honest = frames.arp(lan.a.mac, (lan.a.mac, "192.168.60.77"), f"192.168.60.{100 + secrets.randbelow(100)}")
    lan.a.node.send([*lies, honest])
    for node in (lan.device, lan.b.node):
        assert [frame for frame in node.heard("lies", honest[12:]) if frame in lies] == []
    assert lan.lab.fabric.counter("bridge", counter) == before + len(lies)


def test_nobody_is_another_device_or_a_server(lan: Lan) -> None:
    a, b = lan.a, lan.b
    link_local = naming.link_local(a.mac)
    _is_lied_about(
        lan,
        [
            frames.tagged(frames.arp(a.mac, (a.mac, "192.168.60.7"), SERVER), 7),  # on a VLAN of the switch
            frames.arp(b.mac, (b.mac, SERVER), SERVER),
            frames.arp(a.mac, (b.mac, SERVER), SERVER, reply=True),
            frames.udp4((b.mac, frames.EVERYBODY), ("192.168.60.7", SERVER), (1, 2), b"x"),
            frames.udp4((a.mac, frames.EVERYBODY), (SERVER, "255.255.255.255"), (67, 68), b"offer"),
            frames.router((a.mac, frames.ALL_NODES), link_local),
            frames.udp6((a.mac, frames.ALL_NODES), (link_local, "ff02::1"), (547, 546), b"offer"),
        ],
    )


def test_firewalls_hold_on_the_lan_too(lan: Lan) -> None:
    _join(lan.a)
    b = _join(lan.b)
    for node in (lan.device, lan.b.node):
        node.serve(80)
    assert lan.a.node.connect(SERVER, 80) == "open"
    lan.lab.firewall(lan.a, "internet-only")
    for address in (SERVER, b):
        assert lan.a.node.connect(address, 80, 0.1) == "silent"
    assert lan.a.node.lease(lan.a.mac)["address"]
    lan.device.batch("ip", ["address replace 203.0.113.77/32 dev lo"])
    lan.a.node.batch("ip", [f"route replace 203.0.113.77 via {SERVER}"])
    assert lan.a.node.connect("203.0.113.77", 80) == "open"
    lan.lab.firewall(lan.a, "none")
    assert lan.a.node.connect("203.0.113.77", 80, 0.1) == "silent"
    assert lan.a.node.lease(lan.a.mac)["address"]
    lan.lab.firewall(lan.a, "open", f"deny from {b}", f"deny to {SERVER} tcp 80")
    assert lan.b.node.connect(lan.a.node.lease(lan.a.mac)["address"], 80, 0.1) == "silent"
    assert lan.a.node.connect(SERVER, 80, 0.1) == "silent"
    assert lan.a.node.ping(SERVER)
    lan.lab.firewall(lan.a, "open", isolated=True)
    assert not lan.a.node.ping(b, 0.1)
    assert lan.a.node.ping(SERVER)  # the LAN is not one of our machines
    lan.lab.firewall(lan.a, "open")
