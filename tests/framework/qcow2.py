"""Reads qcow2 files without QEMU, to see with other eyes what it left on a disk. QEMU's docs/interop/qcow2.rst has the format."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

_OFFSET = 0x00FFFFFFFFFFFE00
_COMPRESSED = 1 << 62
_ZERO = 1


def read_chain(chain: Sequence[Path], ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """What a disk holds at each of ``ranges`` (offset and length in bytes). ``chain``: its files, bottom to top."""
    found = [bytearray(length) for _, length in ranges]
    left = {(n, at) for n, (start, length) in enumerate(ranges) for at in range(start, start + length, 512)}
    for path in reversed(chain):
        with path.open("rb") as file:
            image = _Image(file)
            for n, at in sorted(left):
                sector = image.read(at)
                if sector is not None:
                    start = at - ranges[n][0]
                    found[n][start : start + 512] = sector
                    left.discard((n, at))
    return [bytes(data) for data in found]


class _Image:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        magic, version, _, _, bits, _, encryption, _, table = struct.unpack(">4sIQIIQIIQ", self._at(0, 48))
        assert (magic, version, encryption) == (b"QFI\xfb", 3, 0)
        self._cluster = 1 << bits
        self._table = table
        self._tables: dict[int, bytes] = {}

    def read(self, at: int) -> bytes | None:
        """A sector; None where this file says nothing."""
        entries = self._cluster // 8
        cluster = at // self._cluster
        level2 = self._entry(self._table, cluster // entries, 4096) & _OFFSET
        if not level2:
            return None
        entry = self._entry(level2, cluster % entries, self._cluster)
        assert not entry & _COMPRESSED, "compressed clusters are not for heads"
        if entry & _ZERO:
            return bytes(512)
        data = entry & _OFFSET
        return self._at(data + at % self._cluster, 512).ljust(512, b"\0") if data else None

    def _entry(self, table: int, index: int, size: int) -> int:
        start = table + index * 8 // size * size
        if start not in self._tables:
            self._tables[start] = self._at(start, size).ljust(size, b"\0")
        return int.from_bytes(self._tables[start][index * 8 % size :][:8], "big")

    def _at(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(length)
