"""A GUID partition table with its protective MBR, as bytes.

Format: UEFI specification 2.10, chapter 5. Sectors are of 512 bytes, and partitions lie on whole MiB where that matters.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Sequence
from typing import Final

import msgspec

SECTOR: Final = 512
ENTRIES: Final = 128
ENTRY_SIZE: Final = 128
# Header and entries, at both ends of the disk; the MBR comes before the first.
TABLE_SECTORS: Final = 1 + ENTRIES * ENTRY_SIZE // SECTOR
FIRST_USABLE: Final = 1 + TABLE_SECTORS

ESP: Final = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
BIOS_BOOT: Final = uuid.UUID("21686148-6449-6e6f-744e-656564454649")
# The Discoverable Partitions Specification's types of root file systems.
ROOT: Final = {
    "amd64": uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"),
    "arm64": uuid.UUID("b921b045-1df0-41c3-af44-4c6f280d3fae"),
}

_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY: Final = struct.Struct("<16s16sQQQ72s")


class Partition(msgspec.Struct, frozen=True):
    """``first`` and ``last`` are sectors, both included. ``unique`` is the PARTUUID."""

    kind: uuid.UUID
    unique: uuid.UUID
    first: int
    last: int
    name: str


def protective_mbr(sectors: int, boot_code: bytes = b"") -> bytes:
    """Sector 0: boot code (440 bytes at most are used) and one partition that tells old tools to keep off."""
    size = min(sectors - 1, 0xFFFFFFFF)
    entry = struct.pack("<B3sB3sII", 0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, size)
    return boot_code[:440].ljust(440, b"\0") + bytes(6) + entry + bytes(48) + b"\x55\xaa"


def tables(disk: uuid.UUID, sectors: int, partitions: Sequence[Partition]) -> tuple[bytes, bytes]:
    """The primary table (to be written at sector 1) and the backup (at ``sectors - TABLE_SECTORS``).

    Raises ValueError when the partitions overlap or lie outside.
    """
    _check(sectors, partitions)
    entries = b"".join(_entry(partition) for partition in partitions).ljust(ENTRIES * ENTRY_SIZE, b"\0")
    checksum = zlib.crc32(entries)
    primary = _header(disk, sectors, mine=1, other=sectors - 1, entries_at=2, checksum=checksum) + entries
    backup = entries + _header(disk, sectors, mine=sectors - 1, other=1, entries_at=sectors - TABLE_SECTORS, checksum=checksum)
    return primary, backup


def _check(sectors: int, partitions: Sequence[Partition]) -> None:
    end = FIRST_USABLE - 1
    for partition in sorted(partitions, key=lambda part: part.first):
        if partition.first <= end or partition.last < partition.first or partition.last > sectors - TABLE_SECTORS - 1:
            raise ValueError(f"partition '{partition.name}' overlaps or lies outside the disk")
        end = partition.last


def _entry(partition: Partition) -> bytes:
    name = partition.name.encode("utf-16-le").ljust(72, b"\0")
    return _ENTRY.pack(partition.kind.bytes_le, partition.unique.bytes_le, partition.first, partition.last, 0, name)


def _header(disk: uuid.UUID, sectors: int, *, mine: int, other: int, entries_at: int, checksum: int) -> bytes:
    def pack(own_checksum: int) -> bytes:
        return _HEADER.pack(
            *(b"EFI PART", 0x00010000, _HEADER.size, own_checksum, 0, mine, other, FIRST_USABLE, sectors - TABLE_SECTORS - 1),
            *(disk.bytes_le, entries_at, ENTRIES, ENTRY_SIZE, checksum),
        )

    return pack(zlib.crc32(pack(0))).ljust(SECTOR, b"\0")
