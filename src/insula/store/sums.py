"""Sums of files that never change, and stamps: how such a file looked when it was last hashed.

All is hashed once; a later check compares only device, inode, size and time of change. The inode's change time is left out:
every hard link changes it. So the quick check catches accidents and careless hands; whoever may write in the folder and forges
times is caught by hashing alone.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from insula.errors import DamagedRecord, InsulaError
from insula.host.holes import next_data
from insula.store.records import read_record, write_record

if TYPE_CHECKING:
    import hashlib

_CHUNK = 1 << 20
_PIECE = 1 << 16
_ZEROS = bytes(_PIECE)
_VERSION = 1


class FileSum(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file's size in bytes and its sha256; of a ``sparse`` one, see `sparse_hash`."""

    size: int
    sha256: str
    sparse: bool = False


class Stamp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a file looked when it had this sha256."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    sha256: str


class _Stamps(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    files: dict[str, Stamp]


def sum_file(path: Path) -> FileSum:
    """Size and sha256 of a regular file; never follows a link. Raises OSError."""
    stamp = stamp_file(path)
    return FileSum(stamp.size, stamp.sha256)


def stamp_file(path: Path, *, sparse: bool = False) -> Stamp:
    """Hash a regular file; never follows a link. Raises OSError."""
    with _open(path) as stream:
        seen = os.fstat(stream)
        digest = sparse_hash(stream, seen.st_size) if sparse else _hash(stream)
        return Stamp(seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, digest)


def is_as_stamped(path: Path, stamp: Stamp | None, expected: FileSum) -> bool:
    """Whether the file still looks as it did when it was found to be what is expected. Reads nothing of it."""
    if stamp is None or stamp.sha256 != expected.sha256:
        return False
    try:
        seen = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    looks = (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns)
    return looks == (stamp.device, stamp.inode, stamp.size, stamp.mtime_ns)


def read_stamps(path: Path) -> dict[str, Stamp]:
    """The stamps noted at ``path``; none when the note is missing or damaged, which only costs time."""
    with contextlib.suppress(OSError, DamagedRecord):
        return read_record(path, _Stamps).files
    return {}


def write_stamps(path: Path, stamps: dict[str, Stamp]) -> None:
    """Note how files looked. Failing to (a full disk) costs time later, nothing else."""
    with contextlib.suppress(OSError, InsulaError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_record(path, _Stamps(_VERSION, stamps))


@contextlib.contextmanager
def _open(path: Path) -> Iterator[int]:
    """A descriptor of a regular file. Raises OSError for anything else, links included."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def sparse_hash(descriptor: int, size: int) -> str:
    """The sha256 of a file's pieces of 64 KiB that are not all zeros, each after its number (8 bytes, little-endian).

    It does not depend on where the file system put holes, and reads none of them.
    """
    import hashlib  # takes long to load

    digest = hashlib.sha256()
    offset = 0
    while offset < size:
        data = next_data(descriptor, offset)
        if data is None:
            break
        offset = data - data % _PIECE
        end = os.lseek(descriptor, data, os.SEEK_HOLE)
        while offset < end:
            chunk = os.pread(descriptor, _CHUNK, offset)
            if not chunk:
                break
            _add_pieces(digest, chunk, offset // _PIECE)
            offset += min(_CHUNK, len(chunk))
    return digest.hexdigest()


def _add_pieces(digest: hashlib._Hash, chunk: bytes, number: int) -> None:
    for start in range(0, len(chunk), _PIECE):
        piece = chunk[start : start + _PIECE]
        if piece != _ZEROS[: len(piece)]:
            digest.update((number + start // _PIECE).to_bytes(8, "little") + piece)


def _hash(descriptor: int) -> str:
    import hashlib

    digest = hashlib.sha256()
    while chunk := os.read(descriptor, _CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
