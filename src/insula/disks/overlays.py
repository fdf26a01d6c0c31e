"""Overlays: the writable heads of machines' disks.

An overlay names no backing file: the chain is what the machine's record says, given to QEMU explicitly, so nothing a guest
could write into a header makes us open another file.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from insula.errors import ChildFailed, HostLacks
from insula.host.files import fsync_folder
from insula.host.process import run


def create_overlay(path: Path, size: int) -> None:
    """Make an empty qcow2 of ``size`` bytes (virtual) at ``path``, mode 0600; on return it is on the disk.

    Raises FileExistsError, HostLacks (``no_space``, ``program_missing``), ChildFailed.
    """
    # Made by us first: the name is ours alone, and the mode is right before there is any content.
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    try:
        _format(path, size)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        fsync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        raise


def _format(path: Path, size: int) -> None:
    options = "compat=1.1,lazy_refcounts=off,preallocation=off"
    try:
        run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "--", os.fspath(path), str(size)])
    except ChildFailed as cause:
        if "No space left" in cause.output or "quota" in cause.output.lower():
            raise HostLacks(
                f"no space left on the disk that holds {path.parent}",
                code="no_space",
                hint="free some space, or set INSULA_HOME to a folder on another disk",
            ) from cause
        raise
