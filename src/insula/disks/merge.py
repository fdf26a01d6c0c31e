"""Merging layers: several that lie upon one another become one new file, which upon what is below them means the same.

qemu-img does it, in a closed room, because what is in a layer was written by a process that a guest may have taken over. The new
file begins empty; the layers, and an empty one on top that can be opened for writing, are committed into it. Explicit zeros stay
explicit: they hide what is below. What came out is then compared with what went in, by reading both.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from insula.disks.overlays import create_overlay
from insula.errors import ChildFailed, DamagedRecord, HostLacks
from insula.host.files import fsync_file
from insula.isolation.tool import READABLE, WRITABLE, run_tool
from insula.isolation.uids import jail_ids

_CPU_SECONDS: Final = 3600
_ROOM: Final = 1 << 30  # bytes a qcow2 file may be larger than its disk, for its tables
_IN_ROOM_MODE: Final = 0o666  # for a user of its own; the folder above is closed to everybody else
_DONE_MODE: Final = 0o600


def merge_layers(below: Sequence[Path], layers: Sequence[Path], target: Path, size: int, uuid: str) -> None:
    """Make the new file ``target`` of ``layers`` (bottom to top), which lie upon ``below``, on a disk of ``size`` bytes.

    Runs as the user of the machine ``uuid``. On return the file is on the disk. Raises HostLacks (``no_space``), DamagedRecord
    (``bad_layer``); then there is none.
    """
    top = target.with_name(f"{target.name}.top")
    try:
        for path in (target, top):
            create_overlay(path, size)
            path.chmod(_IN_ROOM_MODE)
        _commit(layers, target, top, size, uuid)
        _compare(below, layers, target, uuid)
        target.chmod(_DONE_MODE)
        fsync_file(target)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    finally:
        top.unlink(missing_ok=True)


def _commit(layers: Sequence[Path], target: Path, top: Path, size: int, uuid: str) -> None:
    chain = _chain([f"{WRITABLE}/0", *(f"{READABLE}/{index}" for index in range(len(layers))), f"{WRITABLE}/1"])
    words = ["qemu-img", "commit", "-q", "-d", "-b", f"{WRITABLE}/0", chain]
    uid, most = jail_ids(uuid).machine, size + size // 8 + _ROOM
    with _merge_errors(target):
        run_tool(words, readable=layers, writable=[target, top], uid=uid, seconds=_CPU_SECONDS, largest=most)


def _compare(below: Sequence[Path], layers: Sequence[Path], target: Path, uuid: str) -> None:
    """Raises DamagedRecord (``bad_layer``) when the disk would read differently."""
    files = [*below, *layers, target]
    inside = [f"{READABLE}/{index}" for index in range(len(files))]
    before, after = _chain(inside[:-1]), _chain([*inside[: len(below)], inside[-1]])
    words, uid = ["qemu-img", "compare", "-q", before, after], jail_ids(uuid).machine
    with _merge_errors(target):
        run_tool(words, readable=files, uid=uid, seconds=_CPU_SECONDS, largest=0)


def _chain(paths: Sequence[str]) -> str:
    """qemu-img's name for a disk of these files, bottom to top: no name in a header is followed.

    Not locked: layers are immutable, though a QEMU that wrote one before it was frozen may still hold its lock.
    """
    disk: dict[str, object] | None = None
    for path in paths:
        disk = {"driver": "qcow2", "file": {"driver": "file", "filename": path, "locking": "off"}, "backing": disk}
    return f"json:{json.dumps(disk)}"


@contextlib.contextmanager
def _merge_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except ChildFailed as cause:
        if "No space left" in cause.output:
            raise HostLacks(f"no space left on the disk that holds {target.parent}", code="no_space") from cause
        raise DamagedRecord("layers could not be merged: they stay as they are", code="bad_layer") from cause
