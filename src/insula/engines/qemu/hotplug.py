"""CPUs and memory of a running machine: plugged in, pulled out, asked back.

The guest has its say in each: it tells the firmware what came of a request (ACPI's _OST, in QEMU the event ACPI_DEVICE_OST; the
numbers are those of the ACPI specification, 6.3.5), or lets go in silence, so what counts is what QEMU has afterwards.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from insula.engines.base import GuestMemory, Hardware
from insula.engines.qemu.answers import ask
from insula.engines.qemu.pieces import PREFIX, block_name, cpu_place, cpu_type, dimm_id, dimm_place
from insula.engines.qemu.qmp import Event, Monitor, Refused, nonsense
from insula.errors import GuestError, HostLacks
from insula.model.shape import MEMORY_PLACES, Dimm, most_cpus
from insula.model.spec import MOST_CPUS
from insula.store.machines import BoardRecord

_NOTICED: Final = 20.0  # seconds for a guest to say that it has seen a piece; Linux takes a hundredth of one
_PULLED: Final = 30.0  # and to let go of one: memory must be emptied first
_BALLOON: Final = 60.0
# In so many seconds a balloon must come nearer to where it is to be by a 32nd of the way, or it is not waited for any longer.
_SLOWEST: Final = 12.0
_STEPS: Final = 32
_DEVICE: Final = "/machine/peripheral/balloon0"
_TELLS: Final = 5.0  # seconds for a guest to tell of its memory; QEMU asks once a second
_LOOKS: Final = 0.05  # between two looks: there is no event for that
_UNKNOWN: Final = 1 << 62
_MOST_NUMBERS: Final = most_cpus(MOST_CPUS)

_CHECK, _EJECT = 1, 3  # what was asked of the guest: look at a device, give one up
_DONE, _WORKING = 0, 132
_CPU, _DIMM = "CPU", "DIMM"


class _Place(msgspec.Struct, frozen=True):
    """``query-hotpluggable-cpus``; ``path``: of the CPU that is there."""

    props: dict[str, int]
    path: str | None = msgspec.field(name="qom-path", default=None)


class _Device(msgspec.Struct, frozen=True):
    """``query-memory-devices``, of which a pc-dimm has these."""

    memdev: str = ""
    addr: int = 0


class _Entry(msgspec.Struct, frozen=True):
    type: str
    data: _Device


class _Balloon(msgspec.Struct, frozen=True):
    """``query-balloon``."""

    actual: int


def read_hardware(monitor: Monitor) -> Hardware:
    """See `Engine.hardware`."""
    return Hardware(tuple(sorted(_cpus(monitor))), _pieces(monitor))


def _cpus(monitor: Monitor) -> dict[int, str]:
    """The CPUs that are there: their numbers, and QEMU's paths to them."""
    places = ask(monitor, list[_Place], "query-hotpluggable-cpus")
    cores = max((place.props.get("core-id", 0) for place in places), default=0) + 1
    found = {
        place.props.get("socket-id", 0) * cores + place.props.get("core-id", 0): place.path
        for place in places
        if place.path is not None
    }
    if not all(0 <= number < _MOST_NUMBERS for number in found):
        raise nonsense("it has impossible CPUs")
    return found


def _pieces(monitor: Monitor) -> dict[str, int]:
    found = {}
    for entry in ask(monitor, list[_Entry], "query-memory-devices"):
        match = re.fullmatch(rf"/objects/{PREFIX}([0-9a-f]{{8}})", entry.data.memdev, re.ASCII)
        if match is not None:
            found[match[1]] = entry.data.addr
    if len(found) > MEMORY_PLACES or not all(0 < address < 1 << 40 for address in found.values()):
        raise nonsense("it has impossible memory")
    return found


def hardware(socket_path: Path) -> Hardware:
    with Monitor(socket_path) as monitor:
        return read_hardware(monitor)


def plug_cpu(socket_path: Path, board: BoardRecord, cpus: int, number: int) -> None:
    """See `Engine.plug_cpu`."""
    with Monitor(socket_path) as monitor:
        monitor.execute("device_add", {"driver": cpu_type(board.cpu), **cpu_place(cpus, number)})
        monitor.wait_event(lambda event: _told(event, _CHECK, _CPU, number) is not None, _NOTICED)


def pull_cpu(socket_path: Path, number: int) -> None:
    """See `Engine.pull_cpu`."""
    with Monitor(socket_path) as monitor:
        path = _cpus(monitor).get(number)
        if path is not None and not _pull(monitor, path, lambda: number not in _cpus(monitor), _CPU, number):
            raise GuestError(
                f"the guest does not let go of CPU {number}",
                code="cpu_in_use",
                hint="stop the machine first; it then starts with fewer",
            )


def plug_memory(socket_path: Path, dimm: Dimm) -> None:
    """See `Engine.plug_memory`."""
    block = block_name(dimm)
    with Monitor(socket_path) as monitor:
        try:
            monitor.execute("object-add", {"qom-type": "memory-backend-ram", "id": block, "size": dimm.size})
        except Refused as refused:
            raise HostLacks(f"QEMU gets no memory: {refused.reason}", code="no_memory", hint="ask for less") from refused
        try:
            monitor.execute("device_add", {"driver": "pc-dimm", **dimm_place(dimm)})
        except BaseException:
            with contextlib.suppress(Refused):
                monitor.execute("object-del", {"id": block})
            raise
        monitor.wait_event(lambda event: _told(event, _CHECK, _DIMM, dimm.slot) is not None, _NOTICED)


def pull_memory(socket_path: Path, dimm: Dimm) -> None:
    """See `Engine.pull_memory`."""
    with Monitor(socket_path) as monitor:

        def is_gone() -> bool:
            return dimm.name not in _pieces(monitor)

        if not is_gone() and not _pull(monitor, dimm_id(dimm), is_gone, _DIMM, dimm.slot):
            raise GuestError(
                "the guest does not let go of the memory that was plugged in",
                code="memory_in_use",
                hint="stop the machine first; it then starts with less",
            )
        with contextlib.suppress(Refused):  # it is gone, too
            monitor.execute("object-del", {"id": block_name(dimm)})


def _pull(monitor: Monitor, device: str, is_gone: Callable[[], bool], kind: str, slot: int) -> bool:
    """Ask the guest to let go of a device; whether it did. It may do so later all the same."""
    deadline = time.monotonic() + _PULLED
    with contextlib.suppress(Refused):  # it was asked already
        monitor.execute("device_del", {"id": device})
    while not is_gone():
        event = monitor.wait_event(
            lambda event: event.name == "DEVICE_DELETED" or _told(event, _EJECT, kind, slot) is not None,
            max(0.0, deadline - time.monotonic()),
        )
        status = None if event is None else _told(event, _EJECT, kind, slot)
        if event is None or status not in (None, _DONE, _WORKING):
            return is_gone()
    return True


class _Stats(msgspec.Struct, frozen=True):
    """``guest-stats`` of a virtio-balloon; what the guest did not tell is -1, or 2^64 - 1."""

    stats: dict[str, int]
    last_update: int = msgspec.field(name="last-update")


def _told(event: Event, asked: int, kind: str, slot: int) -> int | None:
    """Pure: what the guest told of a request for a device, if the event is about that."""
    info: Any = event.data.get("info") if event.name == "ACPI_DEVICE_OST" else None
    if not isinstance(info, dict) or (info.get("slot-type"), info.get("slot")) != (kind, str(slot)):
        return None
    status = info.get("status")
    return status if info.get("source") == asked and isinstance(status, int) else None


def guest_memory(socket_path: Path) -> GuestMemory | None:
    """See `Engine.guest_memory`. A guest tells when its QEMU asks, which it is told to do for as long as this takes."""
    with Monitor(socket_path) as monitor:
        deadline = time.monotonic() + _TELLS
        try:
            before = _told_memory(monitor).last_update
            _poll(monitor, 1)
            try:
                while (told := _told_memory(monitor)).last_update == before and time.monotonic() < deadline:
                    monitor.wait_event(lambda _: False, _LOOKS)
            finally:
                _poll(monitor, 0)
        except Refused:
            return None
    free, available = told.stats.get("stat-free-memory"), told.stats.get("stat-available-memory")
    if told.last_update == before or free is None or available is None or not 0 <= free <= available < _UNKNOWN:
        return None
    return GuestMemory(free, available)


def _told_memory(monitor: Monitor) -> _Stats:
    try:
        return msgspec.convert(monitor.execute("qom-get", {"path": _DEVICE, "property": "guest-stats"}), _Stats)
    except msgspec.ValidationError as cause:
        raise nonsense("it tells nothing of its memory") from cause


def _poll(monitor: Monitor, seconds: int) -> None:
    monitor.execute("qom-set", {"path": _DEVICE, "property": "guest-stats-polling-interval", "value": seconds})


def _moved(monitor: Monitor, size: int, seconds: float) -> int:
    """What the guest has when that is ``size``, or after so many seconds. QEMU tells of a change once a second at most."""
    deadline = time.monotonic() + seconds
    while (actual := ask(monitor, _Balloon, "query-balloon").actual) != size and (left := deadline - time.monotonic()) > 0:
        monitor.wait_event(lambda event: event.name == "BALLOON_CHANGE", left)
    return actual


def balloon(socket_path: Path, size: int, *, wait: bool = True) -> int:
    """See `Engine.balloon`."""
    with Monitor(socket_path) as monitor:
        try:
            actual = ask(monitor, _Balloon, "query-balloon").actual
            monitor.execute("balloon", {"value": size})
        except Refused as refused:
            raise GuestError("the machine has no balloon", code="no_balloon", hint="machines that booted have one") from refused
        deadline = time.monotonic() + (_BALLOON if wait else 0.0)
        while (way := abs(actual - size)) and (left := deadline - time.monotonic()) > 0:
            actual = _moved(monitor, size, min(_SLOWEST, left))
            if way - abs(actual - size) < way // _STEPS:
                break
        if wait and actual > size:  # it cannot: asked for ever, it would never have a free page again
            monitor.execute("balloon", {"value": actual})
        return actual
