"""A snapshot as one file for another computer. The format is in docs/snapshots.md, "As one file"; here is its framing.

    magic │ length, head (JSON) │ body                     integers are big-endian
    body: length, manifest (JSON) │ per file: extents │ sha256 of the body so far
    extent: offset (8), length (4), stored (4), bytes: deflated if stored < length; length 0 ends a file, its offset is the size

Holes and zeros are left out. A sealed body is cut into pieces: length (4), sealed piece; the last one is marked inside its seal.
What is read is untrusted until the end: each length is bounded, and nothing inflates beyond what it announced.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, Literal, Protocol

import msgspec

from insula.errors import DamagedRecord, HostLacks, UsageError
from insula.model.transfer import Transfer

MAGIC: Final = b"insula-snapshot\n"
FORMAT: Final[Literal[1]] = 1
PIECE: Final = 1 << 16  # zeros are found, and files written, by pieces of this size
_EXTENT: Final = 1 << 20
_EXTENT_HEAD: Final = struct.Struct(">QII")
_LENGTH: Final = struct.Struct(">I")
_ZEROS: Final = bytes(PIECE)
_LEVEL: Final = 1
_SEALED_PIECE: Final = 1 << 18
_LONGEST_HEAD: Final = 4096
LONGEST_MANIFEST: Final = 4 << 20
# Argon2id as libsodium calls "moderate"; and what is accepted from others, whose choice costs us time and memory.
_PASSES: Final = 3
_MEMORY: Final = 256 << 20
_MOST_PASSES: Final = 12
_MOST_MEMORY: Final = 1 << 30


class Seal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the body is sealed, as hexadecimal where it is bytes: nothing secret."""

    cipher: str
    kdf: str
    passes: int
    memory: int
    salt: str
    header: str


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What comes before the body, and the one thing that no sum is of: so nothing in it may be left out or added."""

    format: Literal[1]
    seal: Seal | None


class _Writer(Protocol):
    def write(self, data: bytes, /) -> object: ...
    def finish(self) -> None: ...


# -- writing -----------------------------------------------------------------------------------------------------------------
class ParcelWriter:
    """Writes one parcel: the manifest, each file in the manifest's order, the end."""

    def __init__(self, transfer: Transfer) -> None:
        self._digest = hashlib.sha256()
        self._below: _Writer = _open_writer(transfer)

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


class _Plain:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        _write_all(self._file, data)

    def finish(self) -> None:
        self._file.flush()


class _Sealing:
    def __init__(self, file: BinaryIO, key: bytes, make_head: Callable[[bytes], bytes]) -> None:
        from insula.host.sodium import Sealer

        self._file = file
        self._sealer = Sealer(key)
        self._waiting = bytearray()
        self._beside = make_head(self._sealer.header)  # the first piece answers for the head
        _write_all(file, self._beside)

    def write(self, data: bytes) -> None:
        self._waiting += data
        while len(self._waiting) > _SEALED_PIECE:
            self._put(bytes(self._waiting[:_SEALED_PIECE]), last=False)
            del self._waiting[:_SEALED_PIECE]

    def finish(self) -> None:
        self._put(bytes(self._waiting), last=True)
        self._file.flush()

    def _put(self, piece: bytes, *, last: bool) -> None:
        sealed = self._sealer.seal(piece, self._beside, last=last)
        self._beside = b""
        _write_all(self._file, _LENGTH.pack(len(sealed)) + sealed)


def _write_all(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _open_writer(transfer: Transfer) -> _Writer:
    if transfer.passphrase is None:
        _write_all(transfer.file, _head_bytes(Head(FORMAT, None)))
        return _Plain(transfer.file)
    from insula.host.sodium import derive_key, random_salt

    salt = random_salt()
    key = derive_key(transfer.passphrase(), salt, _PASSES, _MEMORY)

    def make_head(header: bytes) -> bytes:
        return _head_bytes(Head(FORMAT, Seal("xchacha20poly1305", "argon2id", _PASSES, _MEMORY, salt.hex(), header.hex())))

    return _Sealing(transfer.file, key, make_head)


def _head_bytes(head: Head) -> bytes:
    content = msgspec.json.encode(head)
    return MAGIC + _LENGTH.pack(len(content)) + content


# -- reading -----------------------------------------------------------------------------------------------------------------
class ParcelReader:
    """Reads one parcel in the order it was written. Nothing of it may be used before `end` has returned.

    Raises DamagedRecord (``not_a_parcel``, ``parcel_truncated``, ``parcel_damaged``, ``parcel_too_new``), UsageError
    (``passphrase_needed``, ``wrong_passphrase``).
    """

    def __init__(self, transfer: Transfer) -> None:
        self._digest = hashlib.sha256()
        self._read_below = _open_reader(transfer)

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


class _Read(Protocol):
    def __call__(self, count: int, *, at_end: bool = False) -> bytes:
        """Exactly ``count`` bytes; with ``at_end`` whatever still follows, which should be nothing."""


def _open_reader(transfer: Transfer) -> _Read:
    file = transfer.file
    begin = _read_some(file, len(MAGIC))
    if begin != MAGIC:
        raise DamagedRecord("this is no exported snapshot", code="not_a_parcel", hint="one is made by: insula snapshot export")
    length = _read_all(file, _LENGTH.size)
    count = _LENGTH.unpack(length)[0]
    if count > _LONGEST_HEAD:
        raise damaged("its head is too long")
    content = _read_all(file, count)
    head = _decode_head(content)
    if head.seal is None:
        return _plain_reader(file)
    if transfer.passphrase is None:
        raise UsageError("the file is encrypted", code="passphrase_needed", hint="name a file that holds the passphrase")
    return _Opening(file, head.seal, transfer.passphrase, MAGIC + length + content)


def _decode_head(content: bytes) -> Head:
    class Version(msgspec.Struct):
        format: int

    try:
        version = msgspec.json.decode(content, type=Version).format
        if version > FORMAT:
            raise DamagedRecord(
                f"the file was written by a newer Insula (format {version}, this one knows {FORMAT})",
                code="parcel_too_new",
                hint="use the newer Insula",
            )
        return msgspec.json.decode(content, type=Head)
    except msgspec.MsgspecError as cause:
        raise damaged("its head cannot be read") from cause


def _plain_reader(file: BinaryIO) -> _Read:
    def read(count: int, *, at_end: bool = False) -> bytes:
        return file.read(1) if at_end else _read_all(file, count)

    return read


class _Opening:
    """The body of a sealed parcel."""

    def __init__(self, file: BinaryIO, seal: Seal, passphrase: Callable[[], bytes], head: bytes) -> None:
        from insula.host.sodium import SALT_BYTES, Forged, Opener, derive_key

        known = seal.cipher == "xchacha20poly1305" and seal.kdf == "argon2id"
        if not known or not 1 <= seal.passes <= _MOST_PASSES or not 8192 <= seal.memory <= _MOST_MEMORY:
            raise damaged("it is sealed in a way that is not accepted here")
        try:
            salt, header = bytes.fromhex(seal.salt), bytes.fromhex(seal.header)
            if len(salt) != SALT_BYTES:
                raise damaged("its head makes no sense")
            self._opener = Opener(derive_key(passphrase(), salt, seal.passes, seal.memory), header)
        except (ValueError, Forged) as cause:
            raise damaged("its head makes no sense") from cause
        self._file = file
        self._beside = head
        self._open = bytearray()
        self._last = False

    def __call__(self, count: int, *, at_end: bool = False) -> bytes:
        if at_end:
            return bytes(self._open) or (self._file.read(1) if self._last else b"?")
        while len(self._open) < count:
            if self._last:
                raise _truncated()
            self._next()
        data = bytes(self._open[:count])
        del self._open[:count]
        return data

    def _next(self) -> None:
        from insula.host.sodium import SEAL_BYTES, Forged

        (length,) = _LENGTH.unpack(_read_all(self._file, _LENGTH.size))
        if length > _SEALED_PIECE + SEAL_BYTES:
            raise damaged("a piece is too long")
        sealed = _read_all(self._file, length)
        try:
            piece, self._last = self._opener.open(sealed, self._beside)
        except Forged as cause:
            if self._beside:  # the first piece: as good as always it is the key that is wrong
                raise UsageError(
                    "the passphrase is wrong (or the beginning of the file was changed)", code="wrong_passphrase"
                ) from cause
            raise damaged("a piece was changed, or is not where it was") from cause
        self._beside = b""
        self._open += piece


def _read_all(file: BinaryIO, count: int) -> bytes:
    data = _read_some(file, count)
    if len(data) < count:
        raise _truncated()
    return data


def _read_some(file: BinaryIO, count: int) -> bytes:
    """``count`` bytes, fewer at the end alone: a pipe may give less at a time."""
    parts, left = [], count
    while left and (part := file.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _truncated() -> DamagedRecord:
    return DamagedRecord("the file ends early: it is not whole", code="parcel_truncated", hint="export or copy it again")


def damaged(what: str) -> DamagedRecord:
    """The file is not what `insula snapshot export` wrote."""
    return DamagedRecord(f"the file is damaged: {what}", code="parcel_damaged", hint="export or copy it again")


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
