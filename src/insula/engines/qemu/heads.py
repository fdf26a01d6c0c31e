"""What QEMU is handed while it runs: files, as sets of descriptors, and new heads for its disks.

QEMU sees no folder of ours: every file is handed to it open, and taken back afterwards.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from insula.engines.base import NewHead
from insula.engines.qemu.answers import add_fd, block_nodes, fd_set_of, fd_sets
from insula.engines.qemu.qmp import Monitor, Refused
from insula.errors import InsulaError, MachineEnded

# What sets of descriptors are called that are of use to one call alone.
PASSING: Final = "passing"


class DescriptorSets:
    """Files handed to QEMU for as long as this is open. We close them last: see `forget_emptied`."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._sets: list[int] = []
        self._files = contextlib.ExitStack()

    def open(self, path: Path, *accesses: int) -> str:
        """QEMU's name for the file at ``path``, open with each of ``accesses``."""
        number: int | None = None
        for access in accesses:
            descriptor = os.open(path, access | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            self._files.callback(os.close, descriptor)
            number = _add(self._monitor, descriptor, number, PASSING)
        assert number is not None
        self._sets.append(number)
        return f"/dev/fdset/{number}"

    def close(self) -> None:
        while self._sets:
            with contextlib.suppress(Refused, MachineEnded):
                self._monitor.execute("remove-fd", {"fdset-id": self._sets.pop()})
        self._files.close()


def forget_emptied(path: Path) -> None:
    """To be called when QEMU has begun to write a file. It makes the file empty first, and what was written to such a one ext4
    puts on its way to the disk as soon as anybody closes it for good (auto_da_alloc, ext4(5)); then it is as any other file. Of a
    guest's memory that takes long, and is for nothing when nobody is to keep it. Now next to nothing is written.
    """
    os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))


def add_descriptor(monitor: Monitor, path: Path, access: int, number: int | None, opaque: str = "") -> int:
    descriptor = os.open(path, access | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        return _add(monitor, descriptor, number, opaque)
    finally:
        os.close(descriptor)


def _add(monitor: Monitor, descriptor: int, number: int | None, opaque: str) -> int:
    arguments: dict[str, object] = {"opaque": opaque} if opaque else {}
    if number is not None:
        arguments["fdset-id"] = number
    return add_fd(monitor, descriptor, arguments)


def take_back(monitor: Monitor, opaque: str) -> None:
    """Take back all descriptors handed over under this name; QEMU keeps what it has opened by them."""
    for known in fd_sets(monitor):
        if known.holds(opaque):
            monitor.execute("remove-fd", {"fdset-id": known.number})


def _node(head: NewHead) -> str:
    return f"{head.disk}-{head.depth}"


def add_head(monitor: Monitor, head: NewHead) -> None:
    """Open the overlay, joined to nothing yet. The same words as board.py's for a head."""
    node = _node(head)
    there = {known.name for known in block_nodes(monitor)}
    if node in there:
        return
    common = {"read-only": False, "auto-read-only": False, "discard": "unmap"}
    overlay = {"driver": "qcow2", "node-name": node, "file": f"{node}-file", "backing": None, "detect-zeroes": "unmap", **common}
    # Each by itself: a file added along with its overlay is drained twice and resumed once when both are opened anew (QEMU 10.0,
    # bdrv_reopen_queue_child), and the guest's disk would hang from then on.
    if f"{node}-file" not in there:  # a verb that died may have come as far, or half as far
        take_back(monitor, node)
        number = add_descriptor(monitor, head.path, os.O_RDWR, None, node)
        file = {"driver": "file", "node-name": f"{node}-file", "filename": f"/dev/fdset/{number}", **common}
        monitor.execute("blockdev-add", file)
    try:
        monitor.execute("blockdev-add", overlay)
    except InsulaError:
        drop_head(monitor, head)
        raise


def drop_head(monitor: Monitor, head: NewHead) -> None:
    for node in (_node(head), f"{_node(head)}-file"):
        with contextlib.suppress(InsulaError):
            monitor.execute("blockdev-del", {"node-name": node})
    with contextlib.suppress(InsulaError):
        take_back(monitor, _node(head))


def switch(monitor: Monitor, heads: tuple[NewHead, ...]) -> None:
    """All disks at once go on in their new heads."""
    actions = [
        {"type": "blockdev-snapshot", "data": {"node": f"{head.disk}-{head.depth - 1}", "overlay": _node(head)}} for head in heads
    ]
    if actions:
        monitor.execute("transaction", {"actions": actions})


def is_current(monitor: Monitor, head: NewHead) -> bool:
    """Whether the guest writes to it: one that is only open is joined to nothing below it."""
    return head.depth == 0 or any(known.backing is not None for known in block_nodes(monitor) if known.name == _node(head))


def is_frozen(monitor: Monitor, head: NewHead) -> bool:
    """Whether the former head below it is open for reading alone, or there is none."""
    node = f"{head.disk}-{head.depth - 1}"
    # The node above it says so as soon as it has a head upon it.
    reading = all(known.ro for known in block_nodes(monitor) if known.name == f"{node}-file")
    descriptors = [descriptor for known in fd_sets(monitor) for descriptor in known.fds if descriptor.opaque == node]
    return reading and len(descriptors) <= 1


def freeze(monitor: Monitor, heads: tuple[NewHead, ...], layers: Mapping[str, Path]) -> None:
    """The files of former heads are opened anew, read-only, and what QEMU could write them by is taken back. The overlays in them
    are read-only since they have a head upon them. Possible also while the guest stands, and its disks are closed for now."""
    for head in heads:
        node = f"{head.disk}-{head.depth - 1}"
        known = fd_set_of(monitor, node)
        add_descriptor(monitor, layers[head.disk], os.O_RDONLY, known.number, node)
        file = {"driver": "file", "node-name": f"{node}-file", "filename": f"/dev/fdset/{known.number}"}
        monitor.execute("blockdev-reopen", {"options": [{**file, "read-only": True, "auto-read-only": False}]})
        for descriptor in known.fds:
            monitor.execute("remove-fd", {"fdset-id": known.number, "fd": descriptor.fd})
