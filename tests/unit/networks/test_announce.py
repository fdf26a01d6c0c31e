"""What is said of a card's addresses to others: as a guest itself would say it."""

from __future__ import annotations

import msgspec

from insula.model.network import Nic
from insula.networks import announce
from tests.functional.networks.frames import ALL_NODES, advertisement, arp
from tests.unit.networks.test_plan import BEHIND, NIC, ON_LAN, WEB


def _said(nic: Nic) -> tuple[str, str]:
    assert nic.ipv4 is not None
    assert nic.ipv6 is not None
    by_ipv6 = advertisement((nic.mac, ALL_NODES), (nic.ipv6, "ff02::1"), nic.ipv6, nic.mac)
    return arp(nic.mac, (nic.mac, nic.ipv4), nic.ipv4), by_ipv6


def test_an_address_is_announced_as_its_owner_would() -> None:
    assert tuple(frame.hex() for frame in announce.frames(WEB)) == _said(NIC)


def test_only_addresses_that_are_known_and_used_are_announced() -> None:
    assert announce.frames(ON_LAN) == []
    assert [frame.hex() for frame in announce.frames(BEHIND)] == [_said(NIC)[0]]
    six = msgspec.structs.replace(WEB, nic=msgspec.structs.replace(NIC, ipv4=None))
    assert [frame.hex() for frame in announce.frames(six)] == [_said(NIC)[1]]
