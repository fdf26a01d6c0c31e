"""Frames and fields of the wire, version 1, as docs/wire.md has them. Pure: bytes in, values out, and back."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Sequence

from insula.errors import GuestError, UsageError

VERSION = 1
MAGIC = b"IN"
PAYLOAD_MAX = 65_536
WINDOW = 262_144  # credit each stream starts with, in bytes
WINDOW_MAX = 4_194_304  # credit never adds up to more
CREDIT_STEP = 1_048_576  # it is given at the latest when so many bytes were consumed: some keep to a window of this size

OPEN, DATA, EOF, CREDIT, SIGNAL, RESIZE, RESULT, CLOSE = range(1, 9)
STDIN, STDOUT, STDERR = range(3)

SYNC_MARK = bytes.fromhex("89494e53554c410d0a1a0a53594e4300")
SYNC_ZEROS = 12 + PAYLOAD_MAX
HELLO_MAX = 4096  # no hello carries more bytes of fields

_HEADER = struct.Struct("<2sBBII")
_READER_SIZE = 4 * (_HEADER.size + PAYLOAD_MAX)
_FIELD = struct.Struct("<HI")
_SYNC = struct.Struct("<HHI")
_NUMBER = struct.Struct("<Q")
_CREDIT = struct.Struct("<I")
_SIZE = struct.Struct("<HH")

TEXT, NUMBER, BYTES, RAW = range(4)  # BYTES hold no NUL, RAW may
_TAGS: dict[str, tuple[int, int]] = {
    "verb": (1, TEXT), "argv": (2, BYTES), "env": (3, BYTES), "cwd": (4, BYTES), "user": (5, TEXT), "tty": (6, NUMBER),
    "rows": (7, NUMBER), "cols": (8, NUMBER),
    "path": (10, BYTES), "mode": (11, NUMBER), "uid": (12, NUMBER), "gid": (13, NUMBER), "size": (14, NUMBER),
    "mtime_ns": (15, NUMBER), "kind": (16, TEXT), "target": (17, BYTES), "uname": (18, TEXT), "gname": (19, TEXT),
    "code": (20, NUMBER), "signal": (21, TEXT), "error": (22, TEXT), "message": (23, TEXT),
    "version": (30, NUMBER), "arch": (31, TEXT), "features": (32, TEXT), "boot_id": (33, TEXT), "pid1": (34, NUMBER),
    "build": (35, TEXT), "kernel": (36, TEXT), "os": (37, TEXT),
    "data": (40, RAW), "time_ns": (41, NUMBER), "machine_id": (42, TEXT), "hostname": (43, TEXT), "host_key": (44, RAW),
    "mac": (45, TEXT), "address": (46, TEXT), "gateway": (47, TEXT), "dns": (48, TEXT), "new_mac": (49, TEXT),
    "until": (50, TEXT), "wait_ms": (51, NUMBER), "on_drop": (52, TEXT), "state": (53, TEXT), "reason": (54, TEXT),
    "how": (55, TEXT), "follow": (56, NUMBER), "input": (57, NUMBER),
    "gate": (58, NUMBER), "done": (59, TEXT), "left": (60, TEXT), "former": (61, TEXT),
}  # fmt: skip
_NAMES = {tag: (name, kind) for name, (tag, kind) in _TAGS.items()}

Value = str | bytes | int
Pair = tuple[str, Value]


def garbled(what: str) -> GuestError:
    """The error for bytes that do not follow docs/wire.md."""
    return GuestError(f"the other side of the wire sent nonsense: {what}", code="garbled")


# -- frames ---------------------------------------------------------------------------------------------------------------
class Frame:
    """One frame. ``payload`` is what came over the wire, untrusted; ``lent`` is that, uncopied, when a reader lent it instead."""

    __slots__ = ("channel", "lent", "payload", "stream", "type")

    def __init__(self, type: int, channel: int, payload: bytes = b"", stream: int = 0) -> None:  # noqa: A002 - the wire's word
        self.type = type
        self.channel = channel
        self.payload = payload
        self.stream = stream
        self.lent: memoryview | None = None

    @property
    def content(self) -> bytes | memoryview:
        """``payload``, or what was lent instead."""
        return self.payload if self.lent is None else self.lent

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frame) and self._all() == other._all()

    def __hash__(self) -> int:
        return hash(self._all())

    def __repr__(self) -> str:
        return f"Frame(type={self.type}, channel={self.channel}, stream={self.stream}, payload={self.payload!r})"

    def _all(self) -> tuple[int, int, int, bytes]:
        return (self.type, self.channel, self.stream, self.payload)


class FrameReader:
    """Cuts a stream of bytes into frames, however the bytes were split on their way.

    What comes is received into `space`, memory that is used again and again: to get new memory for each receive, and to have
    it zeroed, would take longer than the rest. DATA of the channels in ``lending`` is not even copied out of it: its frames have
    ``lent`` in place of ``payload``, which holds good until `space` is called again.
    """

    def __init__(self) -> None:
        self.lending: set[int] = set()
        self._buffer = memoryview(bytearray(_READER_SIZE))
        self._begin = self._end = 0  # what is held

    def space(self) -> memoryview:
        """Where the next bytes are to be put; never empty."""
        if self._begin == self._end:
            self._begin = self._end = 0
        elif _READER_SIZE - self._end <= PAYLOAD_MAX:
            held = self._end - self._begin
            self._buffer[:held] = self._buffer[self._begin : self._end]  # they may overlap: a memoryview sees to that
            self._begin, self._end = 0, held
        return self._buffer[self._end :]

    def filled(self, size: int) -> list[Frame]:
        """The frames that became whole by ``size`` bytes more in `space`.

        Raises GuestError (``garbled``) on a malformed header: the stream is lost then.
        """
        self._end += size
        frames: list[Frame] = []
        while self._end - self._begin >= _HEADER.size:
            magic, kind, stream, channel, length = _HEADER.unpack_from(self._buffer, self._begin)
            if magic != MAGIC or length > PAYLOAD_MAX:
                raise garbled("a malformed frame")
            begin = self._begin + _HEADER.size
            if self._end < begin + length:
                break
            self._begin = begin + length
            content = self._buffer[begin : self._begin]
            if kind == DATA and channel in self.lending:
                frame = Frame(kind, channel, stream=stream)
                frame.lent = content.toreadonly()
            else:
                frame = Frame(kind, channel, bytes(content), stream)
            frames.append(frame)
        return frames

    def feed(self, untrusted_data: bytes) -> list[Frame]:
        """The frames that became whole by these bytes. Raises as `filled`."""
        frames: list[Frame] = []
        rest = memoryview(untrusted_data)
        while rest:
            space = self.space()
            piece, rest = rest[: len(space)], rest[len(space) :]
            space[: len(piece)] = piece
            frames += self.filled(len(piece))
        return frames


def encode_header(kind: int, channel: int, length: int, stream: int = 0) -> bytes:
    """The 12 bytes before ``length`` bytes of payload."""
    return _HEADER.pack(MAGIC, kind, stream, channel, length)


def encode_frame(frame: Frame) -> bytes:
    """Raises UsageError when the payload is larger than a frame may carry."""
    if len(frame.payload) > PAYLOAD_MAX:
        raise UsageError("a request to the guest is larger than 64 KiB", code="too_large", hint="send large data as a stream")
    return encode_header(frame.type, frame.channel, len(frame.payload), frame.stream) + frame.payload


def encode_credit(size: int) -> bytes:
    return _CREDIT.pack(size)


def decode_credit(untrusted_payload: bytes) -> int:
    if len(untrusted_payload) != _CREDIT.size:
        raise garbled("a malformed credit")
    return int(_CREDIT.unpack(untrusted_payload)[0])


def encode_size(rows: int, columns: int) -> bytes:
    """The payload of RESIZE; what a u16 cannot hold is cut to what it can."""
    return _SIZE.pack(min(max(rows, 0), 0xFFFF), min(max(columns, 0), 0xFFFF))


# -- fields ---------------------------------------------------------------------------------------------------------------
class Fields:
    """Decoded fields in their order, repeats kept. All of it came from the other side: untrusted until looked at."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: Iterable[Pair] = ()) -> None:
        self.pairs = tuple(pairs)

    def __contains__(self, name: object) -> bool:
        return any(own == name for own, _ in self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fields) and self.pairs == other.pairs

    def __hash__(self) -> int:
        return hash(self.pairs)

    def __repr__(self) -> str:
        return f"Fields({list(self.pairs)!r})"

    def text(self, name: str, otherwise: str = "") -> str:
        """The first field of this name, or ``otherwise``."""
        return next((value for own, value in self.pairs if own == name and isinstance(value, str)), otherwise)

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(value for own, value in self.pairs if own == name and isinstance(value, str))

    def number(self, name: str, otherwise: int = 0) -> int:
        return next((value for own, value in self.pairs if own == name and isinstance(value, int)), otherwise)

    def raw(self, name: str, otherwise: bytes = b"") -> bytes:
        return next((value for own, value in self.pairs if own == name and isinstance(value, bytes)), otherwise)

    def raws(self, name: str) -> tuple[bytes, ...]:
        return tuple(value for own, value in self.pairs if own == name and isinstance(value, bytes))


def encode_fields(pairs: Iterable[tuple[str, Value | Sequence[Value] | None]]) -> bytes:
    """Fields in the order given; a sequence repeats its field, None leaves it out. Raises UsageError on a NUL inside."""
    out = bytearray()
    for name, given in pairs:
        if given is None:
            continue
        tag, kind = _TAGS[name]
        for value in (given,) if isinstance(given, (str, bytes, int)) else given:
            content = _encode_value(name, kind, value)
            out += _FIELD.pack(tag, len(content))
            out += content
    return bytes(out)


def _encode_value(name: str, kind: int, value: Value) -> bytes:
    if isinstance(value, int):
        return _NUMBER.pack(value)
    content = os.fsencode(value)
    if kind != RAW and b"\0" in content:
        raise UsageError(f"'{name}' may not hold a NUL character", code="nul")
    return content


def decode_fields(untrusted_data: bytes) -> Fields:
    """Raises GuestError (``garbled``). Unknown tags are left out; text that is not UTF-8 shows replacement characters."""
    pairs: list[Pair] = []
    at = 0
    while at < len(untrusted_data):
        if len(untrusted_data) - at < _FIELD.size:
            raise garbled("a field cut short")
        tag, length = _FIELD.unpack_from(untrusted_data, at)
        at += _FIELD.size
        content = untrusted_data[at : at + length]
        if len(content) != length:
            raise garbled("a field cut short")
        at += length
        if tag in _NAMES:
            name, kind = _NAMES[tag]
            pairs.append((name, _decode_value(name, kind, content)))
    return Fields(pairs)


def _decode_value(name: str, kind: int, untrusted_content: bytes) -> Value:
    if kind == NUMBER:
        if len(untrusted_content) != _NUMBER.size:
            raise garbled(f"the number '{name}' is not 8 bytes long")
        return int(_NUMBER.unpack(untrusted_content)[0])
    if kind == TEXT:
        return untrusted_content.decode(errors="replace")
    if kind == BYTES and b"\0" in untrusted_content:
        raise garbled(f"'{name}' holds a NUL")
    return untrusted_content


# -- the beginning of a life --------------------------------------------------------------------------------------------------
class Hello:
    """An agent's answer to SYNC. ``version`` is 0 when it speaks none that was offered."""

    __slots__ = ("fields", "version")

    def __init__(self, version: int, fields: Fields) -> None:
        self.version = version
        self.fields = fields


def encode_sync(nonce: bytes, lowest: int = VERSION, highest: int = VERSION) -> bytes:
    """What the host sends to begin a life, the zeros before it included. ``nonce`` is 16 random bytes."""
    return bytes(SYNC_ZEROS) + SYNC_MARK + nonce + _SYNC.pack(lowest, highest, 0)


def find_hello(untrusted_data: bytes, nonce: bytes) -> tuple[Hello, int] | None:
    """The hello that answers ``nonce`` and how many bytes are used up by it and all before it; None while it is not whole."""
    at = untrusted_data.find(SYNC_MARK + nonce)
    begin = at + len(SYNC_MARK) + len(nonce) + _SYNC.size
    if at < 0 or len(untrusted_data) < begin:
        return None
    version, _, length = _SYNC.unpack_from(untrusted_data, begin - _SYNC.size)
    if length > HELLO_MAX:
        raise garbled("a hello of impossible size")
    if len(untrusted_data) < begin + length:
        return None
    return Hello(version, decode_fields(untrusted_data[begin : begin + length])), begin + length
