"""Two networks with machines on them, as root and as an ordinary user: made once, and as new for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from insula.model.network import NetworkSpec
from tests.functional.networks.lab import ROOT_OR_NOT, Guest, Lab, lab

LAB, OTHER, PRIVATE = "1a000001", "2b000002", "3c000003"


class Town:
    """``a``, ``b`` and ``c`` are on one network, ``far`` on another, ``p`` and ``q`` on a private one."""

    def __init__(self, world: Lab) -> None:
        self.lab = world
        world.network(LAB, NetworkSpec("nat", "10.77.0.0/24", "fd12:3456:789a:1::/64"))
        world.network(OTHER, NetworkSpec("nat", "10.78.0.0/24", "fd12:3456:789a:2::/64"))
        world.network(PRIVATE, NetworkSpec("private", "10.79.0.0/24", "fd12:3456:789a:3::/64"))
        self.a, self.b, self.c = (world.guest(name, LAB, number) for name, number in (("a", 10), ("b", 11), ("c", 12)))
        self.far = world.guest("far", OTHER, 10)
        self.p, self.q = (world.guest(name, PRIVATE, number) for name, number in (("p", 10), ("q", 11)))
        for network in (LAB, OTHER, PRIVATE):
            world.names(network)
        for node in (world.outside, world.host, world.fabric, *[guest.node for guest in world.guests]):
            node.serve(80)
            node.serve(81)
            node.serve(90, "udp")

    @property
    def guests(self) -> list[Guest]:
        return [self.a, self.b, self.c, self.far, self.p, self.q]


@pytest.fixture(scope="session", params=ROOT_OR_NOT)
def _town(request: pytest.FixtureRequest) -> Iterator[Town]:
    with lab(ordinary=request.param == "user") as world:
        yield Town(world)


@pytest.fixture
def town(_town: Town) -> Iterator[Town]:
    yield _town
    for guest in _town.guests:
        if guest.attached.firewall.rules or guest.attached.firewall.profile != "open" or guest.attached.firewall.isolated:
            _town.lab.firewall(guest, "open")
