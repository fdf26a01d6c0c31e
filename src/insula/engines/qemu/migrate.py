"""Writing a machine's state and loading it.

Writing, while the guest runs: its memory goes to a file at fixed offsets (QEMU's mapped-ram). At the end of that QEMU has
stopped the guest: in the same stop the devices are written and the disks switch to new heads. A build without mapped-ram
(before 9.0) and boards not proved otherwise are stopped first, and stream memory and devices into one file.

QEMU sees no folder of ours: every file is handed to it open, as a descriptor set that is taken back afterwards.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from insula.engines.base import NewHead, Saved, SaveOrder
from insula.engines.qemu.memory import MAIN, block_pages, find_main, read_blocks
from insula.engines.qemu.monitor import read_status
from insula.engines.qemu.qmp import Event, Monitor, Refused
from insula.engines.qemu.stream import compose
from insula.errors import HostLacks, InsulaError, MachineEnded

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


def save(socket_path: Path, order: SaveOrder) -> Saved:
    """See `Engine.save`."""
    with Monitor(socket_path, _DEVICES) as monitor, contextlib.ExitStack() as undo:
        sets = _DescriptorSets(monitor)
        undo.callback(sets.close)
        ran = _leave_former(monitor)
        for head in order.heads:
            _add_head(monitor, head)
            undo.callback(_drop_head, monitor, head)
        undo.callback(_go_on, monitor, ran)
        mapped = order.machine.startswith(_PROVED) and _can_map(monitor)
        stands_since = _write_memory(monitor, sets, order.memory if mapped else order.state, mapped, ran)
        if mapped:
            _write_devices(monitor, sets, order.state)
        order.at_instant()
        _switch(monitor, order.heads)
        undo.pop_all()
        undo.callback(sets.close)
        order.switched()
        resumed = _go_on(monitor, ran and order.go_on)
        if resumed is not None:
            _freeze(monitor, order)
    pause = resumed - stands_since if resumed is not None and ran else 0.0
    if not mapped:
        return Saved("stream", None, pause)
    return Saved("mapped-ram", _compose_state(order), pause)


def load(socket_path: Path, state: Path) -> None:
    """Let a QEMU that waits for a state load it; on return the guest stands, ready to go on.

    Raises MachineEnded with QEMU's reason.
    """
    with Monitor(socket_path, _DEVICES) as monitor:
        sets = _DescriptorSets(monitor)
        _set_capabilities(monitor, ("events",), True)
        monitor.execute("migrate-incoming", {"uri": f"file:{sets.open(state, os.O_RDONLY)}"})
        event = monitor.wait_event(_is_over, _PATIENCE)
        if event is None or event.data.get("status") != "completed":
            raise MachineEnded(f"QEMU cannot load the state: {_reason(monitor)}", code="load_failed")
        sets.close()


def switch_heads(socket_path: Path, heads: tuple[NewHead, ...]) -> None:
    """See `Engine.switch_heads`."""
    with Monitor(socket_path) as monitor:
        for head in heads:
            _add_head(monitor, head)
        for head in heads:
            try:
                _switch(monitor, (head,))
            except Refused as refused:
                if "already" not in refused.reason:  # has a backing image; is in use
                    raise


def set_links(socket_path: Path, up: bool) -> None:
    """See `Engine.set_links`."""
    with Monitor(socket_path) as monitor:
        for card in monitor.execute("query-rx-filter"):
            monitor.execute("set_link", {"name": str(card["name"]), "up": up})


class _DescriptorSets:
    """Files handed to QEMU for as long as this is open."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._sets: list[int] = []

    def open(self, path: Path, *accesses: int) -> str:
        """QEMU's name for the file at ``path``, open with each of ``accesses``."""
        number: int | None = None
        for access in accesses:
            number = _add_descriptor(self._monitor, path, access, number)
        assert number is not None
        self._sets.append(number)
        return f"/dev/fdset/{number}"

    def close(self) -> None:
        while self._sets:
            with contextlib.suppress(Refused, MachineEnded):
                self._monitor.execute("remove-fd", {"fdset-id": self._sets.pop()})


def _add_descriptor(monitor: Monitor, path: Path, access: int, number: int | None, opaque: str = "") -> int:
    descriptor = os.open(path, access | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        arguments: dict[str, object] = {"opaque": opaque} if opaque else {}
        if number is not None:
            arguments["fdset-id"] = number
        return int(monitor.execute("add-fd", arguments, [descriptor])["fdset-id"])
    finally:
        os.close(descriptor)


def _node(head: NewHead) -> str:
    return f"{head.disk}-{head.depth}"


def _add_head(monitor: Monitor, head: NewHead) -> None:
    """Open the overlay, joined to nothing yet. The same words as board.py's for a head."""
    node = _node(head)
    if any(known["node-name"] == node for known in monitor.execute("query-named-block-nodes", {"flat": True})):
        return
    number = _add_descriptor(monitor, head.path, os.O_RDWR, None, node)
    common = {"read-only": False, "auto-read-only": False, "discard": "unmap"}
    file = {"driver": "file", "node-name": f"{node}-file", "filename": f"/dev/fdset/{number}", **common}
    overlay = {"driver": "qcow2", "node-name": node, "backing": None, "detect-zeroes": "unmap", **common}
    monitor.execute("blockdev-add", {**overlay, "file": file})


def _drop_head(monitor: Monitor, head: NewHead) -> None:
    with contextlib.suppress(InsulaError):
        monitor.execute("blockdev-del", {"node-name": _node(head)})


def _switch(monitor: Monitor, heads: tuple[NewHead, ...]) -> None:
    """All disks at once go on in their new heads."""
    actions = [
        {"type": "blockdev-snapshot", "data": {"node": f"{head.disk}-{head.depth - 1}", "overlay": _node(head)}} for head in heads
    ]
    if actions:
        monitor.execute("transaction", {"actions": actions})


def _freeze(monitor: Monitor, order: SaveOrder) -> None:
    """Former heads are opened anew, read-only, and what QEMU could write them by is taken back."""
    for head in order.heads:
        node, depth = f"{head.disk}-{head.depth - 1}", head.depth - 1
        known = next(one for one in monitor.execute("query-fdsets") if any(fd.get("opaque") == node for fd in one["fds"]))
        _add_descriptor(monitor, order.layers[head.disk], os.O_RDONLY, known["fdset-id"], node)
        common = {"read-only": True, "auto-read-only": False}
        file = {"driver": "file", "node-name": f"{node}-file", "filename": f"/dev/fdset/{known['fdset-id']}", **common}
        below = f"{head.disk}-{depth - 1}" if depth else None
        overlay = {"driver": "qcow2", "node-name": node, "file": f"{node}-file", "backing": below, **common}
        monitor.execute("blockdev-reopen", {"options": [file, overlay]})
        for descriptor in known["fds"]:
            monitor.execute("remove-fd", {"fdset-id": known["fdset-id"], "fd": descriptor["fd"]})


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


def _write_memory(monitor: Monitor, sets: _DescriptorSets, path: Path, mapped: bool, ran: bool) -> float:
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


def _write_devices(monitor: Monitor, sets: _DescriptorSets, path: Path) -> None:
    name = sets.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, os.O_WRONLY)
    try:
        # Not live: else the disks are closed for writing, as for a machine that goes elsewhere.
        monitor.execute("xen-save-devices-state", {"filename": name, "live": False})
    except Refused as refused:
        raise _failed(refused.reason) from refused


def _leave_former(monitor: Monitor) -> bool:
    """Whether the guest runs. One that stands since it was saved before cannot be saved again before it ran for an instant."""
    status = read_status(monitor)
    if status.status == "postmigrate":
        monitor.execute("cont")
        monitor.execute("stop")
    return status.running


def _go_on(monitor: Monitor, wanted: bool) -> float | None:
    """Let the guest run if ``wanted``; since when it does, by QEMU's clock."""
    if not wanted or read_status(monitor).running:
        return None
    monitor.execute("cont")
    event = monitor.wait_event(lambda event: event.name == "RESUME", _DEVICES)
    return event.at if event is not None else None


def _compose_state(order: SaveOrder) -> int:
    """Put what QEMU wants in front of the devices' state. Returns where the pages of the guest's memory begin."""
    descriptor = os.open(order.memory, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        blocks = read_blocks(descriptor)
        main = find_main(blocks, order.size)
        others = [(block.name, block.length, block_pages(descriptor, block)) for block in blocks if block.name != MAIN]
        with order.state.open("r+b") as file:
            stream = compose(file.read(_SMALL), order.machine, others)
            file.seek(0)
            file.write(stream)
    finally:
        os.close(descriptor)
    return main.pages
