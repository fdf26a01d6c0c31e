from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from ctypes import addressof, c_char
from pathlib import Path

import pytest

from insula.engines.qemu.changed import Copied, Ram, is_soon_read, parse_rams, private_mappings, zeros_between
from insula.engines.qemu.memory import PAGE
from insula.engines.qemu.pagemap import own_pages, own_runs, pages_of, read_memory, read_own, runs_of, scan_own
from insula.model.units import MIB

PRESENT, SWAPPED, OF_FILE, EXCLUSIVE, SOFT_DIRTY = 1 << 63, 1 << 62, 1 << 61, 1 << 56, 1 << 55

RAMBLOCKS = """\
              Block Name    PSize              Offset               Used              Total                HVA  RO
                       m    4 KiB  0x0000000000000000 0x0000000020000000 0x0000000020000000 0x00007f7013fff000  rw
    /rom@etc/acpi/tables    4 KiB  0x0000000020080000 0x0000000000020000 0x0000000000200000 0x00007f7041600000  ro
"""


@pytest.mark.parametrize(
    ("entry", "own"),
    [
        (0, False),
        (OF_FILE, False),
        (PRESENT | OF_FILE | 77, False),
        (PRESENT | OF_FILE | EXCLUSIVE | SOFT_DIRTY, False),
        (PRESENT | 77, True),
        (PRESENT | EXCLUSIVE | SOFT_DIRTY | 77, True),
        (SWAPPED | 77 << 5, True),  # written and pushed out, or just being moved: not present then
        (SWAPPED | OF_FILE, True),  # a page of the file being moved: sent for nothing, but right
    ],
)
def test_a_page_is_the_processs_own(entry: int, own: bool) -> None:
    assert own_pages(struct.pack("<3Q", 0, entry, PRESENT | OF_FILE)) == bytes([0, own, 0])


def test_runs() -> None:
    assert runs_of(b"") == runs_of(b"\0\0") == []
    assert runs_of(b"\1") == [(0, 1)]
    assert runs_of(b"\0\1\1\0\1") == [(1, 3), (4, 5)]


def test_pages_that_became_zeros_are_said_to_be() -> None:
    pieces = [(PAGE, b"a" * PAGE + bytes(PAGE)), (8 * PAGE, b"b" * PAGE)]
    assert list(pages_of(pieces)) == [(PAGE, b"a" * PAGE), (2 * PAGE, None), (8 * PAGE, b"b" * PAGE)]
    ((name, length, pages),) = Copied([(Ram("m", 16 * PAGE, 0), pieces)]).pages()
    assert (name, length, len(list(pages))) == ("m", 16 * PAGE, 3)


def test_qemus_list_of_its_memory() -> None:
    main, tables = parse_rams(RAMBLOCKS)
    assert main == Ram("m", 512 * MIB, 0x7F7013FFF000)
    assert tables == Ram("/rom@etc/acpi/tables", 128 << 10, 0x7F7041600000)


@pytest.mark.parametrize(
    "change", [("m ", "m n"), ("0x00007f7013fff000", "0x00007f7013fff001"), ("0x00007f7013fff000", "0x0"), ("rw", "??")]
)
def test_a_list_that_is_not_understood_is_not_used(change: tuple[str, str]) -> None:
    assert parse_rams(RAMBLOCKS.replace(*change)) == []
    assert parse_rams("") == []


def test_zeros_around_what_is_there() -> None:
    assert zeros_between([], 2 * PAGE) == [(0, bytes(2 * PAGE))]
    assert zeros_between([(0, 1), (3, 4)], 5 * PAGE) == [(PAGE, bytes(2 * PAGE)), (4 * PAGE, bytes(PAGE))]
    assert zeros_between([(0, 2)], 2 * PAGE) == []


def test_memory_of_which_only_the_process_itself_has_a_part() -> None:
    maps = """\
1000-3000 rw-p 00000000 00:00 0
3000-4000 ---p 00000000 00:00 0                          [heap]
5000-6000 rw-s 00000000 00:01 77                         /memfd:shared (deleted)
6000-7000 rw-p 00000000 fd:01 99                         /boot/memory with a space
7000-8000 rw-s 00000000 00:00 0
9000-a000 rw-p 00000000 00:00 0                          [anon: a name]
"""
    assert private_mappings(maps) == [(0x1000, 0x4000), (0x9000, 0xA000)]


def test_what_is_read_while_the_guest_stands_is_bounded() -> None:
    assert is_soon_read(0.001, 24 * MIB)
    assert not is_soon_read(0.001, 40 * MIB)
    assert is_soon_read(0.008, 4 * MIB)
    assert not is_soon_read(0.008, 24 * MIB)
    assert not is_soon_read(0.1, 0)


@pytest.fixture
def mapping(tmp_path: Path) -> Iterator[tuple[mmap.mmap, int]]:
    """16 pages of a file, mapped privately by this very process, and where; the file is all ``f``."""
    path = tmp_path / "file"
    path.write_bytes(b"f" * 16 * PAGE)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 16 * PAGE, flags=mmap.MAP_PRIVATE) as memory:
        start = c_char.from_buffer(memory)
        address = addressof(start)
        del start
        yield memory, address


def test_the_kernel_tells_what_was_written_to_a_private_mapping(mapping: tuple[mmap.mmap, int]) -> None:
    """Also a page that was made zeros, and none that was only read or was given back."""
    memory, address = mapping
    assert memory[0:1] == b"f"
    memory[2 * PAGE] = ord("x")
    memory[5 * PAGE : 6 * PAGE] = bytes(PAGE)
    memory[9 * PAGE : 12 * PAGE] = b"y" * 3 * PAGE
    memory.madvise(mmap.MADV_DONTNEED, 10 * PAGE, PAGE)
    with ExitStack() as stack:
        pagemap, mem = (_open(f"/proc/self/{name}", stack) for name in ("pagemap", "mem"))
        own = [(2, 3), (5, 6), (9, 10), (11, 12)]
        assert runs_of(read_own(pagemap, address, 16 * PAGE)) == own_runs(pagemap, address, 16 * PAGE) == own
        with contextlib.suppress(OSError):  # a kernel that knows PAGEMAP_SCAN says the same
            assert scan_own(pagemap, address, 16 * PAGE) == own
        assert read_memory(mem, address + 2 * PAGE, 4 * PAGE) == b"x" + b"f" * (3 * PAGE - 1) + bytes(PAGE)


def test_memory_that_is_not_there_is_an_error() -> None:
    with ExitStack() as stack, pytest.raises(OSError, match="error"):
        read_memory(_open("/proc/self/mem", stack), 0, PAGE)


def _open(path: str, stack: ExitStack) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    stack.callback(os.close, descriptor)
    return descriptor


def test_more_places_than_one_question_has_room_for(tmp_path: Path) -> None:
    pages = 3 * 8192
    with (tmp_path / "file").open("w+b") as file, ExitStack() as stack:
        file.truncate(pages * PAGE)
        with mmap.mmap(file.fileno(), pages * PAGE, flags=mmap.MAP_PRIVATE) as memory:
            for page in range(0, pages, 2):
                memory[page * PAGE] = 1
            start = c_char.from_buffer(memory)
            address = addressof(start)
            del start
            pagemap = _open("/proc/self/pagemap", stack)
            wanted = [(page, page + 1) for page in range(0, pages, 2)]
            assert runs_of(read_own(pagemap, address, pages * PAGE)) == own_runs(pagemap, address, pages * PAGE) == wanted
