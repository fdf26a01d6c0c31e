"""A snapshot as one file for another computer. The format is in docs/snapshots.md, "As one file"; here is the body.

    length, manifest (JSON) │ per file: extents │ sha256 of the body so far          integers are big-endian
    extent: offset (8), length (4), stored (4), bytes: deflated if stored < length; length 0 ends a file, its offset is the size

Holes and zeros are left out. What is read is untrusted until the end: each length is bounded, and nothing inflates beyond what it
announced. What is around the body, and how that is sealed, is in envelope.py.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Final

from insula.errors import HostLacks
from insula.model.transfer import Transfer
from insula.store.envelope import damaged, open_reader, open_writer

PIECE: Final = 1 << 16  # zeros are found, and files written, by pieces of this size
_EXTENT: Final = 1 << 20
_EXTENT_HEAD: Final = struct.Struct(">QII")
_LENGTH: Final = struct.Struct(">I")
_ZEROS: Final = bytes(PIECE)
_LEVEL: Final = 1
LONGEST_MANIFEST: Final = 4 << 20


# -- writing -----------------------------------------------------------------------------------------------------------------
class ParcelWriter:
    """Writes one parcel: the manifest, each file in the manifest's order, the end."""

    def __init__(self, transfer: Transfer) -> None:
        self._digest = hashlib.sha256()
        self._below = open_writer(transfer)

    def manifest(self, content: bytes) -> None:
        self._write(_LENGTH.pack(len(content)) + content)

    def file(self, descriptor: int, told: Callable[[int], object]) -> None:
        """The file's data, without holes and zeros; ``told`` hears how many bytes of data were done."""
        size = os.fstat(descriptor).st_size
        for start, end in data_ranges(descriptor, size):
            for offset in range(start, end, _EXTENT):
                content = os.pread(descriptor, min(_EXTENT, end - offset), offset)
                for at, run in _without_zeros(content):
                    self._extent(offset + at, run)
                told(len(content))
        self._write(_EXTENT_HEAD.pack(size, 0, 0))

    def _extent(self, offset: int, content: bytes) -> None:
        packed = zlib.compress(content, _LEVEL)
        stored = packed if len(packed) < len(content) else content
        self._write(_EXTENT_HEAD.pack(offset, len(content), len(stored)) + stored)

    def end(self) -> None:
        self._below.write(self._digest.digest())
        self._below.finish()

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        self._below.write(data)


def data_ranges(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file has data, as (start, end), the starts being multiples of a piece; the rest are holes."""
    end = 0
    while end < size:
        try:
            data = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as cause:
            if cause.errno == errno.ENXIO:
                return
            raise
        start = max(end, data - data % PIECE)
        end = min(size, -(-os.lseek(descriptor, data, os.SEEK_HOLE) // PIECE) * PIECE)
        yield start, end


def _without_zeros(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The runs of pieces that are not all zeros, and where they begin."""
    begun: int | None = None
    for at in range(0, len(content), PIECE):
        piece = content[at : at + PIECE]
        if piece == _ZEROS[: len(piece)]:
            if begun is not None:
                yield begun, content[begun:at]
            begun = None
        elif begun is None:
            begun = at
    if begun is not None:
        yield begun, content[begun:]


# -- reading -----------------------------------------------------------------------------------------------------------------
class ParcelReader:
    """Reads one parcel in the order it was written. Nothing of it may be used before `end` has returned.

    Raises DamagedRecord (``not_a_parcel``, ``parcel_truncated``, ``parcel_damaged``, ``parcel_too_new``), UsageError
    (``passphrase_needed``, ``wrong_passphrase``).
    """

    def __init__(self, transfer: Transfer) -> None:
        self._digest = hashlib.sha256()
        self._read_below = open_reader(transfer)

    def manifest(self) -> bytes:
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        if length > LONGEST_MANIFEST:
            raise damaged("its list of contents is too long")
        return self._read(length)

    def file(self, size: int, most_data: int, write: Callable[[int, bytes], object]) -> None:
        """Hand each run of data of the next file to ``write`` (offset, bytes). It must be of ``size`` bytes, ``most_data`` of
        them data at most."""
        position = 0
        while True:
            offset, length, stored = _EXTENT_HEAD.unpack(self._read(_EXTENT_HEAD.size))
            if length == 0:
                if offset != size or stored:
                    raise damaged("a file has another size than announced")
                return
            most_data -= length
            if not (position <= offset and offset + length <= size and stored <= length <= _EXTENT and most_data >= 0):
                raise damaged("a file does not fit what was announced")
            write(offset, _inflate(self._read(stored), length))
            position = offset + length

    def end(self) -> None:
        expected = self._digest.digest()
        if self._read_below(len(expected)) != expected:
            raise damaged("its sum is wrong")
        if self._read_below(0, at_end=True):
            raise damaged("something follows its end")

    def _read(self, count: int) -> bytes:
        data = self._read_below(count)
        self._digest.update(data)
        return data


def _inflate(untrusted: bytes, length: int) -> bytes:
    if len(untrusted) == length:
        return untrusted
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(untrusted, length + 1)
    except zlib.error as cause:
        raise damaged("data cannot be unpacked") from cause
    if len(content) != length or not inflater.eof or inflater.unused_data:
        raise damaged("data unpacks to another size than announced")
    return content


def write_at(descriptor: int) -> Callable[[int, bytes], None]:
    """A ``write`` for `ParcelReader.file` that leaves holes where nothing was sent and where zeros were."""

    def write(offset: int, content: bytes) -> None:
        for at, run in _without_zeros(content):
            view, place = memoryview(run), offset + at
            while view:
                written = os.pwrite(descriptor, view, place)
                view, place = view[written:], place + written

    return write


def check_room(folder: str | os.PathLike[str], needed: int) -> None:
    """Raises HostLacks (``no_space``) when the file system of ``folder`` has not ``needed`` bytes left."""
    from pathlib import Path

    from insula.host.files import free_bytes
    from insula.model.units import format_size

    free = free_bytes(Path(folder))
    if needed > free:
        raise HostLacks(
            f"the snapshot needs {format_size(needed)} on the disk that holds {folder}; {format_size(free)} are free",
            code="no_space",
            hint="free some space, or set INSULA_HOME to a folder on another disk",
        )
