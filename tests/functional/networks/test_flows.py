"""How many flows a machine may have open: enough for itself, and not all that the host can follow."""

from __future__ import annotations

from insula.networks import flows, naming
from tests.functional.networks import frames
from tests.functional.networks.conftest import LAB, Town
from tests.functional.networks.lab import OUTSIDE4, Guest

SHORT = 0.1  # seconds for what is dropped without a word


def _begun(guest: Guest, number: int) -> list[str]:
    """As many frames that each begin a flow with the outside."""
    mac, address = (guest.mac, naming.bridge_mac(LAB)), (guest.ipv4, OUTSIDE4)
    return [frames.udp4(mac, address, (1024 + each, 1024 + each % 7), b"x") for each in range(number)]


def _followed(town: Town) -> int:
    return int(town.lab.fabric.check(["cat", "/proc/sys/net/netfilter/nf_conntrack_count"]))


def test_who_opens_too_much_cuts_off_only_itself(town: Town) -> None:
    flood = town.lab.guest("flood", LAB, 99)
    assert flood.node.connect(OUTSIDE4, 80, flow="before") == "open"
    before = _followed(town)
    flood.node.send(_begun(flood, flows.MOST + 1000))
    while _followed(town) - before < flows.MOST - 100:  # a queue on the way was full; others' flows come and go
        flood.node.send(_begun(flood, flows.MOST + 1000))
    assert flood.node.connect(OUTSIDE4, 80, SHORT) == "silent"
    assert flood.node.ping("10.77.0.1", SHORT) is False
    assert _followed(town) - before <= flows.MOST + 100
    assert flood.node.say("before")
    assert town.a.node.connect(OUTSIDE4, 80) == "open"


def test_connections_that_nobody_ends_are_forgotten_within_hours(town: Town) -> None:
    assert town.a.node.connect(OUTSIDE4, 80, flow="kept") == "open"
    # A namespace that was made together with its user's, before that knew any ids, shows its table to nobody.
    for side in (town.lab.fabric, *([] if town.lab.ordinary else [town.lab.host])):
        table = side.check(["cat", "/proc/net/nf_conntrack"])
        own = [line for line in table.splitlines() if "ESTABLISHED" in line and f" dst={OUTSIDE4} " in line]
        waits = [int(line.split()[4]) for line in own]
        assert waits
        assert all(flows.REMEMBERED - 600 < wait <= flows.REMEMBERED for wait in waits), waits
