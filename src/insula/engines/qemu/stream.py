"""A migration stream put together from a device state: what a QEMU loads whose main memory is mapped already.

``xen-save-devices-state`` writes the devices alone: QEMU's loader wants the configuration section too, and the other blocks of
memory (the screen's, the firmware's, ACPI tables) are only in the memory file. Both are put in front of the devices.
The format is that of QEMU's ``migration/savevm.c`` and ``migration/ram.c``; all integers are big-endian. Pure.

What was put together can be taken apart again: by this module alone, which reads nothing that it does not write.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from insula.errors import DamagedRecord

_HEADER: Final = struct.pack(">II", 0x5145564D, 3)
_CONFIGURATION: Final = 0x07
_SECTION_START: Final = 0x01
_SECTION_FOOTER: Final = 0x7E
_DESCRIPTION: Final = 0x06  # of the devices' fields, in JSON, for people who debug; a loader misses it aloud
_SECTION_ID: Final = 0x7FFF0001  # any number that no device's section has
_RAM_VERSION: Final = 4
_ZERO: Final = 0x02
_SIZE: Final = 0x04
_PAGE: Final = 0x08
_EOS: Final = 0x10
_CONTINUE: Final = 0x20

_DESCRIBED: Final = struct.pack(">BI2s", _DESCRIPTION, 2, b"{}")
_RAM: Final = struct.pack(">BIB3sII", _SECTION_START, _SECTION_ID, 3, b"ram", 0, _RAM_VERSION)
_FLAGS: Final = 0xFFF
_PAGE_SIZE: Final = 4096

Pages = Iterable[tuple[int, bytes | None]]


class Parts(msgspec.Struct, frozen=True):
    """What `compose` was given: ``devices``, the ``machine`` type, and of each block its name, length and pages."""

    devices: bytes
    machine: str
    blocks: list[tuple[str, int, list[tuple[int, bytes | None]]]]


def compose(devices: bytes, machine: str, blocks: Sequence[tuple[str, int, Pages]]) -> bytes:
    """The stream: ``devices`` as ``xen-save-devices-state`` wrote them, for the machine type ``machine``, with ``blocks`` of
    memory (name, length, and per page its offset and content, None for zeros).

    Raises DamagedRecord (``bad_state_file``).
    """
    if not devices.startswith(_HEADER) or devices[len(_HEADER) :][:1] == bytes([_CONFIGURATION]):
        raise DamagedRecord("QEMU's device state is not as expected", code="bad_state_file")
    name = machine.encode()
    parts = [_HEADER, struct.pack(">BI", _CONFIGURATION, len(name)), name]
    if blocks:
        parts += _ram_section(blocks)
    parts.append(devices[len(_HEADER) :])
    parts.append(_DESCRIBED)
    return b"".join(parts)


def _ram_section(blocks: Sequence[tuple[str, int, Pages]]) -> Iterator[bytes]:
    yield _RAM
    yield struct.pack(">Q", sum(length for _, length, _ in blocks) | _SIZE)
    for name, length, _ in blocks:
        yield _text(name) + struct.pack(">Q", length)
    for name, _, pages in blocks:
        first = True
        for offset, content in pages:
            flags = (_ZERO if content is None else _PAGE) | (0 if first else _CONTINUE)
            yield struct.pack(">Q", offset | flags)
            if first:
                yield _text(name)
            yield b"\0" if content is None else content
            first = False
    yield struct.pack(">Q", _EOS)
    yield struct.pack(">BI", _SECTION_FOOTER, _SECTION_ID)


def _text(name: str) -> bytes:
    encoded = name.encode()
    return bytes([len(encoded)]) + encoded


def take_apart(untrusted: bytes) -> Parts:
    """What `compose` made a stream of. Raises DamagedRecord (``bad_state_file``) for anything else."""
    reader = _Reader(untrusted)
    reader.expect(_HEADER)
    reader.expect(bytes([_CONFIGURATION]))
    machine = reader.take(reader.number(4)).decode("ascii", "replace")
    blocks = _take_blocks(reader) if reader.at(_RAM) else []
    rest = reader.rest()
    if not rest.endswith(_DESCRIBED):
        raise _not_ours()
    return Parts(_HEADER + rest[: -len(_DESCRIBED)], machine, blocks)


def _take_blocks(reader: _Reader) -> list[tuple[str, int, list[tuple[int, bytes | None]]]]:
    reader.expect(_RAM)
    left = reader.number(8)
    if left & _FLAGS != _SIZE:
        raise _not_ours()
    left &= ~_FLAGS
    blocks: dict[str, tuple[int, list[tuple[int, bytes | None]]]] = {}
    while left > 0:
        name, length = reader.text(), reader.number(8)
        if name in blocks or not 0 < length <= left:
            raise _not_ours()
        blocks[name] = length, []
        left -= length
    length, pages = next(iter(blocks.values()), (0, []))
    while (word := reader.number(8)) != _EOS:
        if not word & _CONTINUE:
            length, pages = blocks.get(reader.text(), (0, []))
        offset, kind = word & ~_FLAGS, word & _FLAGS & ~_CONTINUE
        if kind not in (_ZERO, _PAGE) or offset + _PAGE_SIZE > length:
            raise _not_ours()
        content = reader.take(_PAGE_SIZE if kind == _PAGE else 1)
        pages.append((offset, content if kind == _PAGE else None))
    reader.expect(struct.pack(">BI", _SECTION_FOOTER, _SECTION_ID))
    return [(name, length, pages) for name, (length, pages) in blocks.items()]


class _Reader:
    """Bytes, one piece after the other. Raises DamagedRecord (``bad_state_file``) where they are not as they must be."""

    def __init__(self, untrusted: bytes) -> None:
        self._content, self._place = memoryview(untrusted), 0

    def take(self, count: int) -> bytes:
        taken = bytes(self._content[self._place : self._place + count])
        if len(taken) < count:
            raise _not_ours()
        self._place += count
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def text(self) -> str:
        return self.take(self.number(1)).decode("ascii", "replace")

    def at(self, wanted: bytes) -> bool:
        return self._content[self._place : self._place + len(wanted)] == wanted

    def expect(self, wanted: bytes) -> None:
        if self.take(len(wanted)) != wanted:
            raise _not_ours()

    def rest(self) -> bytes:
        return bytes(self._content[self._place :])


def _not_ours() -> DamagedRecord:
    return DamagedRecord("the devices' state is not as Insula writes it", code="bad_state_file")
