"""A machine's TPM on disk: the folder in which swtpm keeps it, and how its state gets out of one and into another.

Format: swtpm's ``tpmstate dir``. ``tpm2-00.permall`` holds all that outlives a reset (seeds, keys, what the guest stored),
replaced by a rename whenever the guest changes it; swtpm holds a lock (fcntl) on ``.lock`` while it serves. What a running TPM
knows besides is part of QEMU's device state. The folder is written by a process that a guest may have taken over: nothing in it
is followed, and nothing is read that is not a small file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
from pathlib import Path
from typing import Final

from insula.errors import DamagedRecord
from insula.host.files import explain_os_error, fsync_folder, write_atomic

MOST_BYTES: Final = 1 << 20  # a TPM can hold some ten kilobytes

_STATE: Final = "tpm2-00.permall"
_LOCK: Final = ".lock"
_LOOK: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_FLOCK: Final = "hhqqi4x"  # struct flock on 64-bit Linux: type, whence, start, length, pid


def read_tpm(folder: Path) -> bytes | None:
    """The state kept in ``folder``; None when that TPM was never switched on. Raises DamagedRecord (``tpm_damaged``)."""
    try:
        descriptor = os.open(folder / _STATE, os.O_RDONLY | _LOOK)
    except FileNotFoundError:
        return None
    except OSError as cause:
        raise _damaged(folder) from cause
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _damaged(folder)
        untrusted = file.read(MOST_BYTES + 1)
    if len(untrusted) > MOST_BYTES:
        raise _damaged(folder)
    return untrusted


def _damaged(folder: Path) -> DamagedRecord:
    return DamagedRecord(f"{folder / _STATE} is not the state of a TPM", code="tpm_damaged", hint="restore a snapshot")


def make_tpm(folder: Path, state: bytes | None) -> None:
    """Make the folder of a TPM that has this state, or is new. On return it is on the disk. Raises HostLacks (``no_space``)."""
    try:
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700)
        if state is not None:
            write_atomic(folder / _STATE, state)
        fsync_folder(folder)
        fsync_folder(folder.parent)
    except OSError as cause:
        raise explain_os_error(cause, folder) from cause


def hand_over(folder: Path, uid: int | None) -> None:
    """Let the user ``uid`` (None: ourselves) keep a TPM in ``folder``, which is made if it is not there."""
    if not folder.exists():
        make_tpm(folder, None)
    if uid is None:
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        for name in os.listdir(descriptor):
            os.chown(name, uid, uid, dir_fd=descriptor, follow_symlinks=False)
        os.fchown(descriptor, uid, uid)
    finally:
        os.close(descriptor)


def is_served(folder: Path) -> bool:
    """Whether a swtpm is at work in ``folder``."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder / _LOCK, os.O_RDWR | _LOOK)
        try:
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind: int = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))[0]
            return kind != fcntl.F_UNLCK
        finally:
            os.close(descriptor)
    return False
