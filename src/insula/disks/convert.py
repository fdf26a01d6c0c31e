"""Turns a raw disk that we made into a layer."""

from __future__ import annotations

import os
from pathlib import Path

from insula.errors import ChildFailed, HostLacks
from insula.host.process import run
from insula.store import names


def raw_to_layer(raw: Path, layer: Path) -> None:
    """Write the qcow2 ``layer`` from ``raw``, read-only, and fsync it. Empty parts take no space.

    The format of ``raw`` is named, never guessed: its content is what packages made of it. Raises HostLacks (``no_space``),
    ChildFailed.
    """
    words = ["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", "-o", "compat=1.1,lazy_refcounts=off"]
    try:
        run([*words, os.fspath(raw), os.fspath(layer)])
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
