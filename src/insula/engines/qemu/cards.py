"""Network cards of a running machine: plugged in, pulled out, their cables."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Final

from insula.engines.base import NicPlan
from insula.engines.qemu.answers import card_names
from insula.engines.qemu.board import nic_part
from insula.engines.qemu.qmp import Event, Monitor, Refused
from insula.errors import GuestError

_PULLED: Final = 20.0  # seconds for a guest to let go of a card; Linux takes a tenth of one, on a busy host much more


def plug(socket_path: Path, nic: NicPlan, *, offloads: bool) -> None:
    """See `Engine.plug`."""
    assert nic.tap is not None
    assert nic.slot is not None
    name = f"net{nic.slot}"
    with Monitor(socket_path) as monitor:
        with contextlib.suppress(Refused):  # of one that was only half plugged in
            monitor.execute("netdev_del", {"id": name})
        monitor.execute("getfd", {"fdname": name}, [nic.tap])
        monitor.execute("netdev_add", {"type": "tap", "id": name, "fd": name, "vhost": False})
        part = nic_part(nic.slot, nic, offloads)
        try:
            monitor.execute("device_add", {"driver": part.kind, **part.properties})
        except BaseException:
            with contextlib.suppress(Refused):
                monitor.execute("netdev_del", {"id": name})
            raise


def slots(socket_path: Path) -> set[int]:
    """See `Engine.cards`."""
    with Monitor(socket_path) as monitor:
        found = card_names(monitor)
    return {int(match[1]) for name in found if (match := re.fullmatch(r"nic(\d{1,4})", name, re.ASCII))}


def pull(socket_path: Path, slot: int) -> None:
    """See `Engine.pull`."""
    device = f"nic{slot}"

    def is_gone(event: Event) -> bool:
        return event.name == "DEVICE_DELETED" and event.data.get("device") == device

    with Monitor(socket_path) as monitor:
        with contextlib.suppress(Refused):  # it is gone, or the guest was asked already
            monitor.execute("device_del", {"id": device})
        there = device in card_names(monitor)
        if there and monitor.wait_event(is_gone, _PULLED) is None:
            raise GuestError(
                "the guest does not let go of the card", code="card_in_use", hint="stop the machine, then detach the network"
            )
        with contextlib.suppress(Refused):
            monitor.execute("netdev_del", {"id": f"net{slot}"})


def set_link(socket_path: Path, slot: int, up: bool) -> None:
    """See `Engine.set_link`."""
    with Monitor(socket_path) as monitor:
        monitor.execute("set_link", {"name": f"nic{slot}", "up": up})
