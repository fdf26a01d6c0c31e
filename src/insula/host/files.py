"""Files, written so that a power cut or a full disk leaves either the old content or the new, never a mixture."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

from insula.errors import HostLacks

_FLEETING: ContextVar[bool] = ContextVar("fleeting", default=False)


@contextlib.contextmanager
def fleeting(whether: bool = True) -> Iterator[None]:
    """Within, nothing is made sure to be on the disk: it is of a machine that no power cut would leave anybody to miss."""
    token = _FLEETING.set(whether)
    try:
        yield
    finally:
        _FLEETING.reset(token)


def fsync(descriptor: int) -> None:
    """Return when what was written is on the disk, unless it is `fleeting`."""
    if not _FLEETING.get():
        os.fsync(descriptor)


def fsync_file(path: Path) -> None:
    """As `fsync`, for a regular file by its name; never follows a link."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)


def read_plain(path: Path) -> str:
    """The text of a regular file that somebody wrote by hand. Raises OSError, also when it is something else, which reading
    might wait for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, encoding="utf-8", errors="replace") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
        return file.read()


def fsync_folder(folder: Path) -> None:
    if _FLEETING.get():
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace ``path`` by ``content``; on return it is on the disk. Raises HostLacks (``no_space``) when the disk is full."""
    with staged(path, content, mode) as replace:
        replace()


@contextlib.contextmanager
def staged(path: Path, content: bytes, mode: int = 0o600) -> Iterator[Callable[[], None]]:
    """Write what is to replace ``path``; calling what is yielded does it, and on its return that is on the disk.

    Raises HostLacks (``no_space``) when the disk is full; the replacing needs no room any more.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")

    def replace() -> None:
        os.replace(temporary, path)
        fsync_folder(path.parent)

    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            fsync(stream.fileno())
        yield replace
    except OSError as cause:
        raise explain_os_error(cause, path) from cause
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def is_temporary(name: str) -> bool:
    """Whether a file called so is what a `write_atomic` that died left behind."""
    return re.fullmatch(r"\.[^/]+\.[0-9a-f]{8}", name) is not None


def explain_os_error(cause: OSError, path: Path) -> Exception:
    """Turn 'no space' and 'quota' into an error a user can act on; anything else stays what it is."""
    if cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return HostLacks(
            f"no space left on the disk that holds {path.parent}",
            code="no_space",
            hint="free some space, or set INSULA_HOME to a folder on another disk",
        )
    return cause


def remove_tree(path: Path) -> None:
    """Delete a folder and all in it; nothing happens when it is not there. Never follows a link out of it."""
    while os.path.lexists(path):
        # Somebody else may be deleting the same; what vanishes under our hands must not keep us from the rest.
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)


def free_bytes(path: Path) -> int:
    """Bytes an ordinary user may still write on the file system of ``path``."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def disk_usage(folder: Path) -> int:
    """Bytes on disk of the files right in ``folder``; 0 when there is none."""
    total = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total


def own_usage(folder: Path) -> int:
    """Bytes on disk of all files below ``folder`` that are nowhere else: deleting it frees them."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            seen = path.lstat()
            total += seen.st_blocks * 512 if seen.st_nlink == 1 else 0
    return total
