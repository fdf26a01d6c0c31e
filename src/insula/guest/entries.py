"""Entries: how files and folders travel in a stream of bytes, as docs/wire.md has it.

An entry is ``u32 n | n bytes of fields``, followed for a regular file by exactly `size` bytes; ``n = 0`` ends the stream.
Folders come before what is in them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from insula.errors import GuestError, InsulaError
from insula.guest import wire
from insula.model.text import clean

FILE, FOLDER, LINK, HARD_LINK, FIFO = "f", "d", "l", "h", "p"

END = bytes(4)
PATH_MAX = 4096
NAME_MAX = 255
DEPTH_MAX = 200  # who unpacks holds a descriptor for each level, and may have about 1000
_FIELDS_MAX = 16_384  # two paths, two names, some numbers
_BATCH = 131_072

_LENGTH = struct.Struct("<I")


class Entry:
    """One file, folder or link. ``path`` is relative, its components parted by single slashes; ``target`` that of a link."""

    __slots__ = ("gid", "gname", "kind", "mode", "mtime_ns", "path", "size", "target", "uid", "uname")

    def __init__(
        self,
        path: bytes,
        kind: str,
        *,
        mode: int = 0,
        uid: int = 0,
        gid: int = 0,
        uname: str = "",
        gname: str = "",
        mtime_ns: int = 0,
        size: int = 0,
        target: bytes = b"",
    ) -> None:
        self.path = path
        self.kind = kind
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.uname = uname
        self.gname = gname
        self.mtime_ns = mtime_ns
        self.size = size
        self.target = target

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entry) and all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __hash__(self) -> int:
        return hash((self.path, self.kind))

    def __repr__(self) -> str:
        return f"Entry({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"

    def encode(self) -> bytes:
        fields = wire.encode_fields(
            (
                ("path", self.path),
                ("kind", self.kind),
                ("mode", self.mode),
                ("uid", self.uid),
                ("gid", self.gid),
                ("uname", self.uname or None),
                ("gname", self.gname or None),
                ("mtime_ns", self.mtime_ns),
                ("size", self.size if self.kind == FILE else None),
                ("target", self.target or None),
            )
        )
        return _LENGTH.pack(len(fields)) + fields


def components(untrusted_path: bytes) -> list[bytes]:
    """The names a relative path is made of. Raises GuestError (``unsafe_entry``) on one that could lead out of its folder."""
    names = untrusted_path.split(b"/")
    if len(untrusted_path) > PATH_MAX or len(names) > DEPTH_MAX or max(map(len, names)) > NAME_MAX:
        raise GuestError(f"a path too long or too deep: {clean(untrusted_path, longest=200)}", code="path_too_long")
    if any(name in (b"", b"..", b".") for name in names) or b"\0" in untrusted_path:
        raise GuestError(
            f"refused an entry that could lead out of its folder: '{clean(untrusted_path, longest=200)}'", code="unsafe_entry"
        )
    return names


class EntryReader:
    """Reads entries from chunks of bytes, however these were cut.

    ``next`` and ``data`` raise GuestError (``garbled``) on what is no entry, ``truncated`` when the chunks end too early.
    """

    def __init__(self, untrusted_chunks: Iterable[bytes | memoryview]) -> None:
        self._chunks = iter(untrusted_chunks)
        self._held = memoryview(b"")
        self._left = 0

    def next(self) -> Entry | None:
        """The next entry, or None at the end. The data of the one before must have been read."""
        assert self._left == 0, "an entry's data was not read"
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if length == 0:
            return None
        if length > _FIELDS_MAX:
            raise wire.garbled("an entry of impossible size")
        entry = _decode(wire.decode_fields(self._exactly(length)))
        self._left = entry.size
        return entry

    def data(self) -> Iterator[memoryview]:
        """The content of the regular file just returned by `next`."""
        while self._left:
            piece = self._some(self._left)
            self._left -= len(piece)
            yield piece

    def _exactly(self, size: int) -> bytes:
        out = b""
        while len(out) < size:
            out += self._some(size - len(out))
        return out

    def _some(self, most: int) -> memoryview:
        while not self._held:
            chunk = next(self._chunks, None)
            if chunk is None:
                raise GuestError("the stream of files ended too early", code="truncated")
            self._held = memoryview(chunk)
        piece, self._held = self._held[:most], self._held[most:]
        return piece


def _decode(untrusted_fields: wire.Fields) -> Entry:
    fields = untrusted_fields
    kind = fields.text("kind")
    if "path" not in fields or len(kind) != 1:
        raise wire.garbled("an entry without a path or a kind")
    return Entry(
        fields.raw("path"),
        kind,
        mode=fields.number("mode") & 0o7777,
        uid=fields.number("uid"),
        gid=fields.number("gid"),
        uname=fields.text("uname"),
        gname=fields.text("gname"),
        mtime_ns=fields.number("mtime_ns"),
        size=fields.number("size") if kind == FILE else 0,
        target=fields.raw("target"),
    )


def rerooted(
    chunks: Iterable[bytes | memoryview], root: bytes, *, unless_folder: InsulaError | None = None
) -> Iterator[bytes | memoryview]:
    """The same stream of one tree with its root named ``root``; when that is empty, only what is in it is left.

    ``unless_folder`` is raised when the tree is no folder. Raises as `EntryReader` and `components`.
    """
    reader = EntryReader(chunks)
    while (entry := reader.next()) is not None:
        if b"/" not in entry.path and entry.kind != FOLDER and unless_folder is not None:
            raise unless_folder
        entry.path = _moved(entry.path, root)
        if entry.kind == HARD_LINK:
            entry.target = _moved(entry.target, root)
        if entry.path:
            components(entry.path)
            yield entry.encode()
            yield from reader.data()
    yield END


def _moved(path: bytes, root: bytes) -> bytes:
    _, slash, rest = path.partition(b"/")
    return root + slash + rest if root else rest


def batched(parts: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The same bytes with small parts put together, so that a tree of small files does not travel in tiny frames."""
    held = bytearray()
    for part in parts:
        if len(part) >= _BATCH // 2:
            if held:
                yield bytes(held)
                held.clear()
            yield part
            continue
        held += part
        if len(held) >= _BATCH:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)
