"""Makes sure that an image's files are what was built, before anything boots from them.

All is hashed once; then how each file looked (device, inode, size, time of change) is remembered outside the images, and
a later check compares only that. The inode's change time is left out: every hard link a machine takes changes it. So the
quick check catches accidents and careless hands; who may write in the folder and forges times is caught by ``verify`` alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from insula.errors import DamagedRecord, InsulaError
from insula.images.record import FileSum, Image
from insula.store import names
from insula.store.names import Home
from insula.store.records import read_record, write_record

_CHUNK = 1 << 20


class _Stamp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    device: int
    inode: int
    size: int
    mtime_ns: int
    sha256: str


class _Stamps(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    files: dict[str, _Stamp]


def sum_file(path: Path) -> FileSum:
    """Size and sha256 of a regular file; never follows a link."""
    with _open(path) as stream:
        return FileSum(os.fstat(stream).st_size, _hash(stream))


def verify(home: Home, image: Image) -> None:
    """Hash every file of ``image``. Raises DamagedRecord (``image_tampered``); on success later checks are quick."""
    stamps = {}
    for name, expected in sorted(image.record.files.items()):
        try:
            with _open(image.folder / name) as stream:
                seen, found = os.fstat(stream), _hash(stream)
        except OSError as cause:
            raise _tampered(image, name, "cannot be read") from cause
        if (seen.st_size, found) != (expected.size, expected.sha256):
            raise _tampered(image, name, "is not what was built")
        stamps[name] = _Stamp(seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, found)
    remember(home, image, stamps)


def ensure_verified(home: Home, image: Image) -> None:
    """Like ``verify``, but instant when nothing changed since the last time. Raises DamagedRecord (``image_tampered``)."""
    stamps = _remembered(home, image)
    if set(stamps) == set(image.record.files) and all(_unchanged(image, name, stamp) for name, stamp in stamps.items()):
        return
    verify(home, image)


def _unchanged(image: Image, name: str, stamp: _Stamp) -> bool:
    try:
        seen = os.stat(image.folder / name, follow_symlinks=False)
    except OSError:
        return False
    looks = (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns)
    return looks == (stamp.device, stamp.inode, stamp.size, stamp.mtime_ns) and stamp.sha256 == image.record.files[name].sha256


def remember(home: Home, image: Image, stamps: dict[str, _Stamp]) -> None:
    """Write down how the files looked. Failing to (a full disk) costs time later, nothing else."""
    folder = home.host / names.VERIFIED
    with contextlib.suppress(OSError, InsulaError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_record(folder / f"{image.digest}.json", _Stamps(1, stamps))


def forget(home: Home, digest: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        (home.host / names.VERIFIED / f"{digest}.json").unlink()


def _remembered(home: Home, image: Image) -> dict[str, _Stamp]:
    with contextlib.suppress(OSError, DamagedRecord):
        return read_record(home.host / names.VERIFIED / f"{image.digest}.json", _Stamps).files
    return {}


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


def _hash(descriptor: int) -> str:
    digest = hashlib.sha256()
    while chunk := os.read(descriptor, _CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _tampered(image: Image, name: str, why: str) -> DamagedRecord:
    return DamagedRecord(
        f"the image '{image.name}' was tampered with: {image.folder / name} {why}",
        code="image_tampered",
        hint=f"build it again: insula image build --refresh {image.name}",
    )
