"""Putting one file in the place of several layers of a disk while the guest runs. Both mean the same, so nobody notices.

Layers are numbered from the bottom as board.py does, and keep their number for as long as this QEMU lives; a merged one is called
after its file. The layer above it is opened anew with the merged one below; then the former ones are closed.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Final

from insula.engines.base import MergedLayer
from insula.engines.qemu.answers import add_fd, block_nodes, fd_sets
from insula.engines.qemu.qmp import Monitor, Refused

_READ_ONLY: Final[dict[str, object]] = {"read-only": True, "auto-read-only": False}


def put_merged(socket_path: Path, merged: MergedLayer) -> None:
    """See `Engine.put_merged`."""
    disk, node = merged.disk, f"{merged.disk}-{merged.token}"
    with Monitor(socket_path) as monitor:
        below = None if merged.below is None else f"{disk}-{merged.below}"
        _add(monitor, node, merged.path, below)
        upper = f"{disk}-{merged.above}"
        layer = {"driver": "qcow2", "node-name": upper, "file": f"{upper}-file", "backing": node, **_READ_ONLY}
        try:
            monitor.execute("blockdev-reopen", {"options": [layer]})
        except Refused:
            _remove(monitor, [node])
            raise
        _remove(monitor, _former(monitor, merged, node))


def _add(monitor: Monitor, node: str, path: Path, below: str | None) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        number = add_fd(monitor, descriptor, {"opaque": node})
    finally:
        os.close(descriptor)
    file = {"driver": "file", "node-name": f"{node}-file", "filename": f"/dev/fdset/{number}", **_READ_ONLY}
    try:
        monitor.execute("blockdev-add", {"driver": "qcow2", "node-name": node, "backing": below, **_READ_ONLY, "file": file})
    except Refused:
        monitor.execute("remove-fd", {"fdset-id": number})
        raise


def _former(monitor: Monitor, merged: MergedLayer, node: str) -> list[str]:
    """The nodes that are of no use any more, top to bottom: what lay between, also what a verb that died left there. Merged ones
    that still are of use are among them: QEMU does not let go of these."""
    numbered, others = [], []
    for name in (known.name for known in block_nodes(monitor)):
        if match := re.fullmatch(rf"{merged.disk}-(\d{{1,9}})", name):
            if merged.lowest <= int(match[1]) < merged.end:
                numbered.append((int(match[1]), name))
        elif re.fullmatch(rf"{merged.disk}-m[0-9a-f]{{8}}", name) and name != node:
            others.append(name)
    return [name for _, name in sorted(numbered, reverse=True)] + others


def _remove(monitor: Monitor, nodes: list[str]) -> None:
    """Close nodes and take back their descriptors. One that another still needs goes after that; what cannot go, stays."""
    left = list(nodes)
    while left:
        refused = []
        for node in left:
            try:
                monitor.execute("blockdev-del", {"node-name": node})
            except Refused:
                refused.append(node)
        if len(refused) == len(left):
            break
        left = refused
    gone = set(nodes) - set(left)
    for node in gone:
        with contextlib.suppress(Refused):  # the file's node went along, unless it was there first
            monitor.execute("blockdev-del", {"node-name": f"{node}-file"})
    for known in fd_sets(monitor):
        if any(known.holds(node) for node in gone):
            with contextlib.suppress(Refused):
                monitor.execute("remove-fd", {"fdset-id": known.number})
