"""The envelope of a snapshot that is one file: its head, and the body after it, plain or sealed. The format is in
docs/snapshots.md, "As one file".

    magic │ length, head (JSON) │ body                     integers are big-endian

A sealed body is cut into pieces: length (4), sealed piece; the last one is marked inside its seal. What is read is untrusted:
each length is bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import BinaryIO, Final, Literal, Protocol

import msgspec

from insula.errors import DamagedRecord, UsageError
from insula.model.transfer import Transfer

MAGIC: Final = b"insula-snapshot\n"
FORMAT: Final[Literal[1]] = 1
_LENGTH: Final = struct.Struct(">I")
_SEALED_PIECE: Final = 1 << 18
_LONGEST_HEAD: Final = 4096
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


class Writer(Protocol):
    def write(self, data: bytes, /) -> object: ...
    def finish(self) -> None: ...


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


def open_writer(transfer: Transfer) -> Writer:
    """Write the head, and return where the body is to go: sealed, if the transfer knows a passphrase."""
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


class Read(Protocol):
    def __call__(self, count: int, *, at_end: bool = False) -> bytes:
        """Exactly ``count`` bytes; with ``at_end`` whatever still follows, which should be nothing."""


def open_reader(transfer: Transfer) -> Read:
    """Read the head, and return what gives the body. Raises DamagedRecord, UsageError, as `ParcelReader`."""
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


def _plain_reader(file: BinaryIO) -> Read:
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
