"""Partition tables: read back by a reader of its own, checksums and all."""

from __future__ import annotations

import struct
import uuid
import zlib

import pytest

from insula.images.bootdisk import DiskPlan, boot_sectors, grub_configuration
from insula.images.gpt import BIOS_BOOT, ESP, FIRST_USABLE, ROOT, SECTOR, TABLE_SECTORS, Partition, protective_mbr, tables

SECTORS = 1 << 20
DISK = uuid.UUID(int=1)


def disk_of(partitions: list[Partition]) -> bytes:
    disk = bytearray(SECTORS * SECTOR // 1024)  # the middle is left out: both ends are looked at apart
    primary, backup = tables(DISK, SECTORS, partitions)
    assert len(primary) == len(backup) == TABLE_SECTORS * SECTOR
    disk[SECTOR : SECTOR + len(primary)] = primary
    return bytes(disk[: SECTOR + len(primary)]) + backup


def check_header(header: bytes, entries: bytes, *, mine: int, other: int, entries_at: int) -> None:
    assert header[:8] == b"EFI PART"
    assert struct.unpack("<III", header[8:20])[:2] == (0x10000, 92)
    own = struct.unpack("<I", header[16:20])[0]
    assert own == zlib.crc32(header[:16] + bytes(4) + header[20:92])
    assert struct.unpack("<QQQQ", header[24:56]) == (mine, other, FIRST_USABLE, SECTORS - TABLE_SECTORS - 1)
    assert uuid.UUID(bytes_le=header[56:72]) == DISK
    assert struct.unpack("<QIII", header[72:92]) == (entries_at, 128, 128, zlib.crc32(entries))


def test_both_tables_are_whole() -> None:
    root = Partition(ROOT["amd64"], uuid.UUID(int=9), 2048, SECTORS - 100, "root")
    disk = disk_of([root])
    primary, backup = disk[SECTOR : SECTOR * (1 + TABLE_SECTORS)], disk[SECTOR * (1 + TABLE_SECTORS) :]
    entries = primary[SECTOR:]
    assert backup[:-SECTOR] == entries
    check_header(primary[:SECTOR], entries, mine=1, other=SECTORS - 1, entries_at=2)
    check_header(backup[-SECTOR:], entries, mine=SECTORS - 1, other=1, entries_at=SECTORS - TABLE_SECTORS)
    assert uuid.UUID(bytes_le=entries[:16]) == ROOT["amd64"]
    assert uuid.UUID(bytes_le=entries[16:32]) == uuid.UUID(int=9)
    assert struct.unpack("<QQQ", entries[32:56]) == (2048, SECTORS - 100, 0)
    assert entries[56:128].decode("utf-16-le").rstrip("\0") == "root"
    assert not any(entries[128:])


@pytest.mark.parametrize(
    "spans", [[(2048, 4096), (4096, 5000)], [(33, 40)], [(2048, 2047)], [(2048, SECTORS - 33)], [(5000, 6000), (2048, 5500)]]
)
def test_impossible_partitions_are_refused(spans: list[tuple[int, int]]) -> None:
    partitions = [Partition(ESP, uuid.UUID(int=2), first, last, "x") for first, last in spans]
    with pytest.raises(ValueError, match="overlaps or lies outside"):
        tables(DISK, SECTORS, partitions)


def test_the_protective_record() -> None:
    mbr = protective_mbr(SECTORS, b"\xeb" * 600)
    assert (len(mbr), mbr[510:]) == (SECTOR, b"\x55\xaa")
    assert mbr[:440] == b"\xeb" * 440
    assert mbr[446 + 4] == 0xEE
    assert struct.unpack("<II", mbr[446 + 8 : 446 + 16]) == (1, SECTORS - 1)
    huge = protective_mbr(1 << 40)
    assert struct.unpack("<II", huge[446 + 8 : 446 + 16]) == (1, 0xFFFFFFFF)


def test_the_boot_stages_know_their_places() -> None:
    mbr, core = boot_sectors(SECTORS, bytes(512), b"\x01" * 1300)
    assert struct.unpack("<Q", mbr[0x5C:0x64]) == (2048,)
    assert mbr[0x66:0x68] == b"\x90\x90"
    assert len(core) == 3 * SECTOR
    assert struct.unpack("<QHH", core[0x1F4:0x200]) == (2049, 2, 0x820)
    with pytest.raises(ValueError, match="larger than its partition"):
        boot_sectors(SECTORS, bytes(512), bytes(2 << 20))


@pytest.mark.parametrize("size", [2 << 30, 10 << 30, (10 << 30) + 4096])
def test_a_plan_fits_its_disk(size: int) -> None:
    plan = DiskPlan("ab" * 32, "amd64", size)
    bios, esp, root = plan.partitions()
    assert (bios.kind, esp.kind, root.kind) == (BIOS_BOOT, ESP, ROOT["amd64"])
    tables(DISK, plan.sectors, plan.partitions())
    assert (root.last - root.first + 1) * SECTOR == plan.root_bytes
    assert plan.root_bytes % 4096 == 0
    assert len({bios.unique, esp.unique, root.unique}) == 3


def test_a_plan_follows_from_the_digest_alone() -> None:
    assert DiskPlan("ab" * 32, "amd64", 2 << 30).partitions() == DiskPlan("ab" * 32, "amd64", 2 << 30).partitions()
    assert DiskPlan("ab" * 32, "amd64", 2 << 30).root_uuid != DiskPlan("cd" * 32, "amd64", 2 << 30).root_uuid


def test_grub_boots_the_links_that_kernel_packages_keep() -> None:
    plan = DiskPlan("ab" * 32, "amd64", 2 << 30)
    text = grub_configuration(plan, "console=ttyS0")
    assert text.count(f"root=UUID={plan.root_uuid} rw console=ttyS0") == 3
    assert "linux /boot/insula/newest/vmlinuz" in text
    assert "initrd /initrd.img\n" in text
    assert "{" in text
    assert "{{" not in text
