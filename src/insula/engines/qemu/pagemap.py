"""Which pages of a private mapping of a file are a process's own, and what is in them: read from outside the process. Pure but
for reading.

Format: ``Documentation/admin-guide/mm/pagemap.rst`` in Linux. For each page of the address space pagemap has 64 bits, of which
the top ones say: 63 present, 62 swapped out or just being moved, 61 a page of a file. A page of the process's own is present and
of no file, or it is swapped out; one that was never touched, or only read, is neither. Linux 6.7 and later looks for them itself
(PAGEMAP_SCAN, ``linux/fs.h``), which is quick where little was touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from array import array
from typing import Final

from insula.engines.qemu.memory import PAGE
from insula.engines.qemu.stream import Pages

_PRESENT: Final = 0x80
_SWAPPED: Final = 0x40
_OF_FILE: Final = 0x20
_ENTRY: Final = 8
# By the top byte of a page's entry: 1 where the page is the process's own.
_OWN: Final = bytes(top & _SWAPPED != 0 or top & (_PRESENT | _OF_FILE) == _PRESENT for top in range(256))
_ZEROS: Final = bytes(PAGE)
_SCAN: Final = 0xC0606610  # the number of the request, for a struct pm_scan_arg of 96 bytes
_SCAN_ARGUMENTS: Final = struct.Struct("=12Q")
_SCAN_OF_FILE, _SCAN_PRESENT, _SCAN_SWAPPED = 1 << 2, 1 << 3, 1 << 4
_REGIONS: Final = 8192
_MOST_AT_ONCE: Final = 1 << 30  # the kernel returns a little less than 2 GiB at most

Run = tuple[int, int]


def own_pages(entries: bytes) -> bytes:
    """Pure: a byte for each page that the pagemap's ``entries`` (little-endian) are about, 1 where it is the process's own."""
    return entries[_ENTRY - 1 :: _ENTRY].translate(_OWN)


def runs_of(own: bytes) -> list[Run]:
    """Pure: where the process's own pages lie together, each as the first and the one after the last."""
    runs, end = [], 0
    while (start := own.find(1, end)) >= 0:
        end = own.find(0, start)
        if end < 0:
            end = len(own)
        runs.append((start, end))
    return runs


def own_runs(pagemap: int, address: int, length: int) -> list[Run]:
    """Where in ``length`` bytes at ``address`` the process's own pages are, in pages from there. Raises OSError."""
    with contextlib.suppress(OSError):  # an older kernel
        return scan_own(pagemap, address, length)
    return runs_of(read_own(pagemap, address, length))


def scan_own(pagemap: int, address: int, length: int) -> list[Run]:
    """As `own_runs`, by PAGEMAP_SCAN. Raises OSError where the kernel does not know that."""
    runs: list[Run] = []
    regions = array("Q", bytes(24 * _REGIONS))  # struct page_region: first byte, the one after the last, what they are
    place, wanted = regions.buffer_info()[0], _SCAN_PRESENT | _SCAN_SWAPPED
    start, end, told = address, address + length, 0
    while start < end:
        # Any of `wanted`, and not (inverted) of a file.
        words = [_SCAN_ARGUMENTS.size, 0, start, end, 0, place, _REGIONS, 0, _SCAN_OF_FILE, _SCAN_OF_FILE, wanted, wanted]
        arguments = bytearray(_SCAN_ARGUMENTS.pack(*words))
        found = fcntl.ioctl(pagemap, _SCAN, arguments)
        for at in range(0, 3 * found, 3):
            first, last = (regions[at] - address) // PAGE, (regions[at + 1] - address) // PAGE
            if last > told:  # begun anew, the kernel goes back a little, and tells some regions twice
                runs.append((max(first, told), last))
                told = last
        start = _SCAN_ARGUMENTS.unpack(arguments)[4]  # where it stopped, for want of room
    return runs


def count_pages(runs: list[Run]) -> int:
    """Pure: how many pages are in them."""
    return sum(end - start for start, end in runs)


def read_own(pagemap: int, address: int, length: int) -> bytes:
    """As `own_pages`, of ``length`` bytes at ``address``. Raises OSError when the kernel does not tell."""
    parts, offset, left = [], address // PAGE * _ENTRY, length // PAGE * _ENTRY
    while left:
        entries = os.pread(pagemap, min(left, _MOST_AT_ONCE), offset)
        if not entries or len(entries) % _ENTRY:
            raise OSError(f"{left} bytes of the pagemap are missing")
        parts.append(own_pages(entries))
        offset, left = offset + len(entries), left - len(entries)
    return b"".join(parts)


def read_memory(memory: int, address: int, length: int) -> bytes:
    """``length`` bytes of the process's memory. Raises OSError when they cannot be read."""
    parts, left = [], length
    while left:
        part = os.pread(memory, min(left, _MOST_AT_ONCE), address + length - left)
        if not part:
            raise OSError(f"{left} bytes of memory are missing")
        parts.append(part)
        left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def pages_of(pieces: list[tuple[int, bytes]]) -> Pages:
    """Pure: page by page what lies in ``pieces`` (offset in the block, and content): its offset, and None for all zeros."""
    for start, content in pieces:
        for offset in range(0, len(content), PAGE):
            page = content[offset : offset + PAGE]
            yield start + offset, None if page == _ZEROS else page
