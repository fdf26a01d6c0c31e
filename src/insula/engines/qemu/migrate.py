"""Writing a machine's state and loading it.

There are three ways to write it. Where the machine's memory is a mapped file and few pages of it have changed, it is stopped and
those are read (changed.py). Else its memory goes, while the guest runs, to a file at fixed offsets (QEMU's mapped-ram); at the
end of that QEMU has stopped the guest. In the same stop the devices are written and the disks switch to new heads. A build
without mapped-ram (before 9.0) and boards not proved otherwise are stopped first, and stream memory and devices into one file.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from insula.engines.base import Method, NewHead, Saved, SaveOrder
from insula.engines.qemu.changed import Copied, changes
from insula.engines.qemu.heads import (
    PASSING,
    DescriptorSets,
    add_head,
    drop_head,
    freeze,
    is_current,
    is_frozen,
    switch,
    take_back,
)
from insula.engines.qemu.memory import MAIN, block_pages, find_main, read_blocks
from insula.engines.qemu.monitor import read_status
from insula.engines.qemu.qmp import Event, Monitor, Refused
from insula.engines.qemu.stream import compose
from insula.errors import HostLacks, InsulaError, MachineEnded
from insula.host.files import explain_os_error
from insula.store import names

# Boards on which memory and devices written apart were proved to load as one; others stream.
_PROVED: Final = "pc-q35-"
_CAPABILITIES: Final = ("mapped-ram", "multifd")
_CHANNELS: Final = 2
_UNBOUNDED: Final = 1 << 40  # bytes per second
# Milliseconds the guest may stand while the last pages are written: first the wish, then, for a guest that dirties its memory
# faster than that allows, whatever it takes.
_PAUSE: Final = 20
_LONGEST_PAUSE: Final = 300_000
_CONVERGE: Final = 8.0  # seconds
_PATIENCE: Final = 600.0  # seconds for writing the memory of a large guest to a slow disk
_DEVICES: Final = 60.0
_TIDY: Final = 0.001  # between two looks whether QEMU has tidied up, of which there is no event
_SMALL: Final = 16 << 20  # devices' state is a fraction of this


@dataclass(frozen=True, slots=True)
class _Taken:
    """How memory and devices were taken, since when the guest stands for it, by QEMU's clock, and what is not in a file yet."""

    method: Method
    since: float
    changed: Copied | None = None


def save(run: Path, order: SaveOrder) -> Saved:
    """See `Engine.save`."""
    with Monitor(run / names.QMP_SOCKET, _DEVICES) as monitor, contextlib.ExitStack() as undo:
        sets = DescriptorSets(monitor)
        undo.callback(sets.close)
        ran = read_status(monitor).running
        for head in order.heads:
            add_head(monitor, head)
            undo.callback(drop_head, monitor, head)
        undo.callback(_go_on, monitor, ran)
        taken = _take_changes(monitor, sets, run, order, ran) or _take_all(monitor, sets, order, ran)
        order.at_instant()
        switch(monitor, order.heads)
        undo.pop_all()
        undo.callback(sets.close)
        order.switched()
        resumed = _go_on(monitor, ran and order.go_on)
        freeze(monitor, order.heads, order.layers)
    pause = resumed - taken.since if resumed is not None and ran else 0.0
    return Saved(taken.method, None if taken.method == "stream" else _compose_state(order, taken.changed), pause)


def _take_changes(monitor: Monitor, sets: DescriptorSets, run: Path, order: SaveOrder, ran: bool) -> _Taken | None:
    """Read what has changed since the machine was loaded; on return the guest stands. None, and it goes on, where that cannot
    be, or would take long."""
    if not order.machine.startswith(_PROVED):
        return None
    with changes(monitor, run, order) as found:
        copied, since = None, 0.0
        with contextlib.suppress(OSError):
            if found is not None and found.few():
                since = _stop(monitor) if ran else 0.0
                copied = found.read()
        if copied is not None:
            _write_devices(monitor, sets, order.state)
            return _Taken("changed-pages", since, copied)
        order.memory.unlink(missing_ok=True)
        _go_on(monitor, ran)
    return None


def _take_all(monitor: Monitor, sets: DescriptorSets, order: SaveOrder, ran: bool) -> _Taken:
    """Let QEMU write all of the memory; on return the guest stands."""
    _leave_former(monitor)
    if order.machine.startswith(_PROVED) and _can_map(monitor):
        since = _write_memory(monitor, sets, order.memory, True, ran)
        _write_devices(monitor, sets, order.state)
        return _Taken("mapped-ram", since)
    return _Taken("stream", _write_memory(monitor, sets, order.state, False, ran))


def _stop(monitor: Monitor) -> float:
    """Stop the guest; since when it stands, by QEMU's clock. What it wrote to its disks is in their files then."""
    monitor.execute("stop")
    event = monitor.wait_event(lambda event: event.name == "STOP", _DEVICES)
    return event.at if event is not None else 0.0


def load(socket_path: Path, state: Path) -> None:
    """Let a QEMU that waits for a state load it; on return the guest stands, ready to go on.

    Raises MachineEnded with QEMU's reason.
    """
    with Monitor(socket_path, _DEVICES) as monitor:
        sets = DescriptorSets(monitor)
        _set_capabilities(monitor, ("events",), True)
        monitor.execute("migrate-incoming", {"uri": f"file:{sets.open(state, os.O_RDONLY)}"})
        event = monitor.wait_event(_is_over, _PATIENCE)
        if event is None or event.data.get("status") != "completed":
            raise MachineEnded(f"QEMU cannot load the state: {_reason(monitor)}", code="load_failed")
        sets.close()


def switch_heads(socket_path: Path, heads: tuple[NewHead, ...], layers: Mapping[str, Path], *, go_on: bool) -> None:
    """See `Engine.switch_heads`. Whoever did a part of this before may have died after any step of it."""
    with Monitor(socket_path) as monitor:
        left = tuple(head for head in heads if not is_current(monitor, head))
        for head in left:
            add_head(monitor, head)
        switch(monitor, left)
        _go_on(monitor, go_on)
        freeze(monitor, tuple(head for head in heads if not is_frozen(monitor, head)), layers)
        take_back(monitor, PASSING)


def set_links(socket_path: Path, up: bool) -> None:
    """See `Engine.set_links`."""
    with Monitor(socket_path) as monitor:
        for card in monitor.execute("query-rx-filter"):
            monitor.execute("set_link", {"name": str(card["name"]), "up": up})


def _can_map(monitor: Monitor) -> bool:
    try:
        _set_capabilities(monitor, _CAPABILITIES, True)
    except Refused:
        return False
    _set_capabilities(monitor, _CAPABILITIES, False)
    return True


def _set_capabilities(monitor: Monitor, names: tuple[str, ...], state: bool) -> None:
    capabilities = [{"capability": name, "state": state} for name in names]
    monitor.execute("migrate-set-capabilities", {"capabilities": capabilities})


@contextlib.contextmanager
def _capable(monitor: Monitor, mapped: bool) -> Iterator[None]:
    names = (*_CAPABILITIES, "events") if mapped else ("events",)
    _set_capabilities(monitor, names, True)
    try:
        yield
    finally:
        with contextlib.suppress(InsulaError):
            _set_capabilities(monitor, names, False)


def _write_memory(monitor: Monitor, sets: DescriptorSets, path: Path, mapped: bool, ran: bool) -> float:
    """Write the memory to ``path``; on return the guest stands, and it is of that instant. Since when, by QEMU's clock."""
    descriptors = sets.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, os.O_WRONLY)
    parameters: dict[str, object] = {"max-bandwidth": _UNBOUNDED, "downtime-limit": _PAUSE}
    if mapped:
        parameters["multifd-channels"] = _CHANNELS
    elif ran:
        monitor.execute("stop")
    monitor.execute("migrate-set-parameters", parameters)
    with _capable(monitor, mapped):
        monitor.execute("migrate", {"uri": f"file:{descriptors}"})
        since = _wait_written(monitor)
        _wait_tidy(monitor)
        return since


def _wait_tidy(monitor: Monitor) -> None:
    """Wait until QEMU has put away what it migrated with, which it does after it said `completed` and as its capabilities then
    are: with multifd turned off before, the channels stay, and the next save aborts QEMU. Giving up its yank instance is the
    last it does (migration_cleanup in QEMU's migration.c).
    """
    deadline = time.monotonic() + _DEVICES
    while any(instance["type"] == "migration" for instance in monitor.execute("query-yank")):
        if time.monotonic() > deadline:
            raise InsulaError("QEMU does not end its migration", code="save_failed")
        time.sleep(_TIDY)


def _wait_written(monitor: Monitor) -> float:
    since, timeout = 0.0, _CONVERGE
    while True:
        event = monitor.wait_event(lambda event: event.name == "STOP" or _is_over(event), timeout)
        if event is None:
            if timeout == _PATIENCE:
                raise InsulaError(f"the memory was not written within {_PATIENCE:g} s", code="save_failed")
            monitor.execute("migrate-set-parameters", {"downtime-limit": _LONGEST_PAUSE})
            timeout = _PATIENCE
        elif event.name == "STOP":
            since = event.at
        elif event.data["status"] == "completed":
            return since
        else:
            raise _failed(_reason(monitor))


def _is_over(event: Event) -> bool:
    return event.name == "MIGRATION" and event.data.get("status") in ("completed", "failed", "cancelled")


def _reason(monitor: Monitor) -> str:
    answer: Any = monitor.execute("query-migrate")
    return str(answer.get("error-desc", "no reason given"))


def _failed(reason: str) -> InsulaError:
    if "No space left" in reason or "space" in reason.lower() or "quota" in reason.lower():
        return HostLacks("no space left for the machine's memory", code="no_space", hint="free some space")
    return InsulaError(f"QEMU could not write the machine's memory: {reason}", code="save_failed")


def _write_devices(monitor: Monitor, sets: DescriptorSets, path: Path) -> None:
    name = sets.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, os.O_WRONLY)
    try:
        # Not live: else the disks are closed for writing, as for a machine that goes elsewhere.
        monitor.execute("xen-save-devices-state", {"filename": name, "live": False})
    except Refused as refused:
        raise _failed(refused.reason) from refused


def _leave_former(monitor: Monitor) -> None:
    """A guest that stands since QEMU wrote its memory before cannot be written again before it ran for an instant."""
    if read_status(monitor).status == "postmigrate":
        monitor.execute("cont")
        monitor.execute("stop")


def _go_on(monitor: Monitor, wanted: bool) -> float | None:
    """Let the guest run if ``wanted``; since when it does, by QEMU's clock."""
    if not wanted or read_status(monitor).running:
        return None
    monitor.execute("cont")
    event = monitor.wait_event(lambda event: event.name == "RESUME", _DEVICES)
    return event.at if event is not None else None


def _compose_state(order: SaveOrder, changed: Copied | None) -> int:
    """Put what QEMU wants in front of the devices' state. Returns where the pages of the guest's memory begin."""
    descriptor = os.open(order.memory, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        blocks = read_blocks(descriptor)
        main = find_main(blocks, order.size)
        if changed is not None:
            others = changed.pages()
        else:
            others = [(block.name, block.length, block_pages(descriptor, block)) for block in blocks if block.name != MAIN]
        with order.state.open("r+b") as file:
            stream = compose(file.read(_SMALL), order.machine, others)
            file.seek(0)
            file.write(stream)
    except OSError as cause:
        raise explain_os_error(cause, order.state) from cause
    finally:
        os.close(descriptor)
    return main.pages
