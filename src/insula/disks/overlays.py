"""Overlays: the writable heads of machines' disks.

An overlay names no backing file: the chain is what the machine's record says, given to QEMU explicitly, so nothing a guest
could write into a header makes us open another file.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from insula.disks.qcow2 import empty_image
from insula.errors import UsageError
from insula.host.files import explain_os_error, fsync, fsync_folder


def create_overlay(path: Path, size: int) -> None:
    """Make an empty qcow2 of ``size`` bytes (virtual) at ``path``, mode 0600; on return it is on the disk.

    Raises FileExistsError, HostLacks (``no_space``), UsageError (``bad_size``).
    """
    try:
        content, length = empty_image(size)
    except ValueError as cause:
        raise UsageError(f"a disk of {size} bytes is not possible", code="bad_size") from cause
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.truncate(length)
            stream.flush()
            fsync(stream.fileno())
        fsync_folder(path.parent)
    except BaseException as cause:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        if isinstance(cause, OSError):
            raise explain_os_error(cause, path) from cause
        raise
