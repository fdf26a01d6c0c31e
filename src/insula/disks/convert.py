"""Turns the raw disk that packages made into a layer: in a closed room, as every tool that reads what is not ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from insula.errors import ChildFailed, HostLacks
from insula.isolation.tool import READABLE, WRITABLE, run_tool
from insula.isolation.uids import service_id
from insula.store import names

_CPU_SECONDS: Final = 3600
_ROOM: Final = 1 << 30  # bytes a qcow2 file may be larger than its disk, for its tables
_IN_ROOM_MODE: Final = 0o666  # for a user of its own; the folder above is closed to everybody else


def raw_to_layer(raw: Path, layer: Path) -> None:
    """Write the qcow2 ``layer`` from ``raw``, read-only, and fsync it. Empty parts take no space.

    The format of ``raw`` is named, never guessed: its content is what packages made of it. Raises HostLacks (``no_space``),
    ChildFailed.
    """
    words = ["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", "-o", "compat=1.1,lazy_refcounts=off"]
    size = raw.stat().st_size
    layer.touch()
    layer.chmod(_IN_ROOM_MODE)
    try:
        run_tool(
            [*words, f"{READABLE}/0", f"{WRITABLE}/0"], readable=[raw], writable=[layer], uid=service_id("image"),
            seconds=_CPU_SECONDS, largest=size + size // 8 + _ROOM,
        )  # fmt: skip
    except ChildFailed as cause:
        if "No space left" in cause.output:
            raise HostLacks(
                f"no space left on the disk that holds {layer.parent}", code="no_space", hint="free some space"
            ) from cause
        raise
    layer.chmod(names.LAYER_MODE)
    descriptor = os.open(layer, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
