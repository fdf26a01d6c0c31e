"""Writing a machine's state and loading it.

There are four ways to write it. Where the machine's memory is a mapped file and few pages of it have changed, it is stopped and
those are read (changed.py). Else its memory goes, while the guest runs, to a file at fixed offsets (QEMU's mapped-ram); at the
end of that QEMU has stopped the guest. In the same stop the devices are written and the disks switch to new heads. A build
without mapped-ram (before 9.0) is stopped for its devices alone and writes the memory of that instant while the guest runs, where
the host lets it (background.py). Else, and on boards not proved otherwise, the guest stands while memory and devices are streamed
into one file.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

import msgspec

from insula.engines.base import Hardware, Method, NewHead, Saved, SaveOrder
from insula.engines.qemu.answers import card_names
from insula.engines.qemu.background import can_track, write_behind
from insula.engines.qemu.changed import Copied, changes, read_ahead
from insula.engines.qemu.heads import (
    PASSING,
    DescriptorSets,
    add_head,
    drop_head,
    forget_emptied,
    freeze,
    is_current,
    is_frozen,
    switch,
    take_back,
)
from insula.engines.qemu.hotplug import read_hardware
from insula.engines.qemu.memory import MAIN, block_pages, find_main, find_pieces, read_blocks
from insula.engines.qemu.monitor import read_status
from insula.engines.qemu.outgoing import (
    DEVICES,
    PATIENCE,
    UNBOUNDED,
    capable,
    failed,
    go_on,
    is_over,
    let_run,
    set_capabilities,
    stop,
    why,
)
from insula.engines.qemu.pieces import PREFIX
from insula.engines.qemu.qmp import Monitor, Refused
from insula.engines.qemu.stream import compose
from insula.errors import DamagedRecord, GuestError, InsulaError, MachineEnded
from insula.host.files import explain_os_error
from insula.store import names

WAYS: Final[frozenset[Method]] = frozenset({"changed-pages", "mapped-ram", "background-snapshot"})

# Boards on which memory and devices written apart were proved to load as one; others stream.
_PROVED: Final = "pc-q35-"
_CAPABILITIES: Final = ("mapped-ram", "multifd")
# Threads that write the memory: they leave a CPU of the host to the guest, where it can. A second one makes its pause no shorter.
_CHANNELS: Final = max(1, min(2, (os.cpu_count() or 1) - 1))
# Milliseconds the guest may stand while the last pages are written, and for how many seconds that is wished. QEMU stops it as
# soon as that seems possible, so a large wish makes long pauses for guests for which a short one would do. For one that dirties
# its memory faster than that allows, whatever it takes.
_WISHES: Final = ((5, 4.0), (20, 4.0), (300_000, PATIENCE))
_UNDER_WAY: Final = frozenset({"active", "completed", "failed", "cancelled"})
_SMALL: Final = 16 << 20  # devices' state is a fraction of this


class _Taken(msgspec.Struct, frozen=True):
    """How memory and devices were taken, since when the guest stands for it, by QEMU's clock, and what is not in a file yet."""

    method: Method
    since: float
    changed: Copied | None = None


def save(run: Path, order: SaveOrder, ways: Collection[Method] = WAYS) -> Saved:
    """See `Engine.save`. ``ways``: those that may be used, besides ``stream``."""
    with Monitor(run / names.QMP_SOCKET, DEVICES) as monitor, contextlib.ExitStack() as undo:
        sets = DescriptorSets(monitor)
        undo.callback(sets.close)
        ran = read_status(monitor).running
        hardware = read_hardware(monitor)
        if gone := set(order.must_have) - set(hardware.cpus):
            raise GuestError(
                f"the guest has let go of CPU {min(gone)}, without which an emulated machine cannot be saved",
                code="cpu_let_go",
                hint="restart it",
            )
        for head in order.heads:
            undo.callback(drop_head, monitor, head)  # first: its file may be handed over, and no more than that
            add_head(monitor, head)
        undo.callback(let_run, monitor, ran)
        taken = _take_changes(monitor, sets, run, order, ran, hardware) if "changed-pages" in ways else None
        taken = taken or _take_all(monitor, sets, order, ran, ways, hardware)
        behind = taken is None and ran and order.go_on and _can_write_behind(monitor, order, ways)
        if behind:
            read_ahead(monitor, run, order)
            taken = _Taken("background-snapshot", stop(monitor))
        elif taken is None:
            taken = _Taken("stream", _write_memory(monitor, sets, order.state, False, ran))
        order.at_instant()
        switch(monitor, order.heads)
        undo.pop_all()
        undo.callback(sets.close)
        order.switched()
        if behind:
            taken, resumed = _write_behind(monitor, sets, order, taken)
        else:
            resumed = go_on(monitor) if ran and order.go_on else None
        freeze(monitor, order.heads, order.layers)
    pause = resumed - taken.since if resumed is not None and ran else 0.0
    whole = taken.method in ("stream", "background-snapshot")
    return Saved(taken.method, None if whole else _compose_state(order, taken.changed), pause, hardware)


def _can_write_behind(monitor: Monitor, order: SaveOrder, ways: Collection[Method]) -> bool:
    return "background-snapshot" in ways and order.machine.startswith(_PROVED) and can_track(monitor)


def _write_behind(monitor: Monitor, sets: DescriptorSets, order: SaveOrder, taken: _Taken) -> tuple[_Taken, float | None]:
    """Write the state of a guest that stands, while it goes on; where QEMU cannot even begin, before it does."""
    try:
        resumed = write_behind(monitor, order.state)
        if resumed is not None:
            return taken, resumed
        _write_memory(monitor, sets, order.state, False, False)
    except BaseException:
        with contextlib.suppress(InsulaError):
            let_run(monitor, True)
        raise
    return _Taken("stream", taken.since), let_run(monitor, True)


def _take_changes(
    monitor: Monitor, sets: DescriptorSets, run: Path, order: SaveOrder, ran: bool, hardware: Hardware
) -> _Taken | None:
    """Read what has changed since the machine was loaded; on return the guest stands. None, and it goes on, where that cannot
    be, or would take long."""
    if not order.machine.startswith(_PROVED):
        return None
    with changes(monitor, run, order) as found:
        copied, since, devices = None, 0.0, ""
        with contextlib.suppress(OSError):
            if found is not None and found.few():
                devices = _open_devices(sets, order.state)
                _tell_begun(order, "changed-pages", hardware)
                since = stop(monitor) if ran else 0.0
                copied = found.read()
        if copied is not None:
            _write_devices(monitor, devices)
            return _Taken("changed-pages", since, copied)
        for path in (order.memory, order.state):
            path.unlink(missing_ok=True)
        let_run(monitor, ran)
    return None


def _take_all(
    monitor: Monitor, sets: DescriptorSets, order: SaveOrder, ran: bool, ways: Collection[Method], hardware: Hardware
) -> _Taken | None:
    """Let QEMU write all of the memory to a file of its own; on return the guest stands. None where it cannot."""
    _leave_former(monitor)
    if "mapped-ram" not in ways or not order.machine.startswith(_PROVED) or not _can_map(monitor):
        return None
    devices = _open_devices(sets, order.state)
    since = _write_memory(monitor, sets, order.memory, True, ran, lambda: _wait_begun(monitor, order, hardware))
    _write_devices(monitor, devices)
    return _Taken("mapped-ram", since)


def _wait_begun(monitor: Monitor, order: SaveOrder, hardware: Hardware) -> None:
    """Wait until the memory can be mapped, if anybody wants to: once its writing is under way the file has its list of blocks
    (ram_save_setup in QEMU's migration/ram.c flushes that), and each entry of that stands behind the pages of the one before."""
    if order.begun is None:
        return
    event = monitor.wait_event(lambda event: event.name == "MIGRATION" and event.data.get("status") in _UNDER_WAY, DEVICES)
    if event is None or event.data["status"] != "active":
        raise failed(why(monitor))
    _tell_begun(order, "mapped-ram", hardware)


def _tell_begun(order: SaveOrder, method: Method, hardware: Hardware) -> None:
    if order.begun is None:
        return
    descriptor = os.open(order.memory, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        main = find_main(read_blocks(descriptor), order.size)
        whole = os.fstat(descriptor).st_size >= main.pages + main.length
    except DamagedRecord:  # told of when it is complete
        return
    finally:
        os.close(descriptor)
    if whole:
        order.begun(Saved(method, main.pages, 0.0, hardware))


def load(socket_path: Path, state: Path) -> None:
    """Let a QEMU that waits for a state load it; on return the guest stands, ready to go on.

    Raises MachineEnded with QEMU's reason.
    """
    with Monitor(socket_path, DEVICES) as monitor:
        sets = DescriptorSets(monitor)
        set_capabilities(monitor, ("events",), True)
        monitor.execute("migrate-incoming", {"uri": f"file:{sets.open(state, os.O_RDONLY)}"})
        event = monitor.wait_event(is_over, PATIENCE)
        if event is None or event.data.get("status") != "completed":
            raise MachineEnded(f"QEMU cannot load the state: {why(monitor)}", code="load_failed")
        sets.close()


def switch_heads(socket_path: Path, heads: tuple[NewHead, ...], layers: Mapping[str, Path], *, go_on: bool) -> None:
    """See `Engine.switch_heads`. Whoever did a part of this before may have died after any step of it."""
    with Monitor(socket_path) as monitor:
        left = tuple(head for head in heads if not is_current(monitor, head))
        for head in left:
            add_head(monitor, head)
        switch(monitor, left)
        let_run(monitor, go_on)
        freeze(monitor, tuple(head for head in heads if not is_frozen(monitor, head)), layers)
        take_back(monitor, PASSING)


def set_links(socket_path: Path, up: bool) -> None:
    """See `Engine.set_links`."""
    with Monitor(socket_path) as monitor:
        for name in card_names(monitor):
            monitor.execute("set_link", {"name": name, "up": up})


def _can_map(monitor: Monitor) -> bool:
    try:
        set_capabilities(monitor, _CAPABILITIES, True)
    except Refused:
        return False
    set_capabilities(monitor, _CAPABILITIES, False)
    return True


def _write_memory(
    monitor: Monitor, sets: DescriptorSets, path: Path, mapped: bool, ran: bool, begun: Callable[[], None] = lambda: None
) -> float:
    """Write the memory to ``path``; on return the guest stands, and it is of that instant. Since when, by QEMU's clock. ``begun``
    is called as soon as QEMU is about it."""
    descriptors = sets.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, os.O_WRONLY)
    parameters: dict[str, object] = {"max-bandwidth": UNBOUNDED, "downtime-limit": _WISHES[0][0]}
    if mapped:
        parameters["multifd-channels"] = _CHANNELS
    elif ran:
        monitor.execute("stop")
    monitor.execute("migrate-set-parameters", parameters)
    with capable(monitor, *(_CAPABILITIES if mapped else ())):
        monitor.execute("migrate", {"uri": f"file:{descriptors}"})
        forget_emptied(path)
        begun()
        return _wait_written(monitor)


def _wait_written(monitor: Monitor) -> float:
    since = 0.0
    for wish, patience in _WISHES:
        monitor.execute("migrate-set-parameters", {"downtime-limit": wish})
        deadline = time.monotonic() + patience
        while event := monitor.wait_event(lambda event: event.name == "STOP" or is_over(event), deadline - time.monotonic()):
            if event.name == "STOP":
                since, deadline = event.at, time.monotonic() + PATIENCE
            elif event.data["status"] == "completed":
                return since
            else:
                raise failed(why(monitor))
    raise InsulaError(f"the memory was not written within {PATIENCE:g} s", code="save_failed")


def _open_devices(sets: DescriptorSets, path: Path) -> str:
    """Beforehand: a guest that stands waits for every word with QEMU."""
    return sets.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, os.O_WRONLY)


def _write_devices(monitor: Monitor, name: str) -> None:
    try:
        # Not live: else the disks are closed for writing, as for a machine that goes elsewhere.
        monitor.execute("xen-save-devices-state", {"filename": name, "live": False})
    except Refused as refused:
        raise failed(refused.reason) from refused


def _leave_former(monitor: Monitor) -> None:
    """A guest that stands since QEMU wrote its memory before cannot be written again before it ran for an instant."""
    if read_status(monitor).status == "postmigrate":
        monitor.execute("cont")
        monitor.execute("stop")


def _compose_state(order: SaveOrder, changed: Copied | None) -> int:
    """Put what QEMU wants in front of the devices' state. Returns where the pages of the guest's memory begin."""
    descriptor = os.open(order.memory, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        blocks = read_blocks(descriptor)
        main = find_main(blocks, order.size)
        if changed is not None:
            others = changed.pages()
        else:
            mapped = {MAIN, *(PREFIX + name for name in find_pieces(blocks))}
            others = [(block.name, block.length, block_pages(descriptor, block)) for block in blocks if block.name not in mapped]
        with order.state.open("r+b") as file:
            stream = compose(file.read(_SMALL), order.machine, others)
            file.seek(0)
            file.write(stream)
    except OSError as cause:
        raise explain_os_error(cause, order.state) from cause
    finally:
        os.close(descriptor)
    return main.pages
