"""A migration stream put together from a device state: what a QEMU loads whose main memory is mapped already.

``xen-save-devices-state`` writes the devices alone: QEMU's loader wants the configuration section too, and the other blocks of
memory (the screen's, the firmware's, ACPI tables) are only in the memory file. Both are put in front of the devices.
The format is that of QEMU's ``migration/savevm.c`` and ``migration/ram.c``; all integers are big-endian. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

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

Pages = Iterable[tuple[int, bytes | None]]


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
    parts.append(struct.pack(">BI2s", _DESCRIPTION, 2, b"{}"))
    return b"".join(parts)


def _ram_section(blocks: Sequence[tuple[str, int, Pages]]) -> Iterator[bytes]:
    yield struct.pack(">BIB3sII", _SECTION_START, _SECTION_ID, 3, b"ram", 0, _RAM_VERSION)
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
