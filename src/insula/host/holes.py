"""Files with holes: copying them, and mapping them where the file system is one in memory (tmpfs).

There a page that is read where the file has a hole takes room, though nothing is written: Linux makes the page as part of the
file (``mm/shmem.c``). When there is none, the reader is killed by SIGBUS. On a disk a hole is read without taking any.
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import Final

from insula.errors import HostLacks
from insula.model.units import format_size

_POPULATE_READ: Final = 22  # MADV_POPULATE_READ, asm-generic/mman-common.h, Linux 5.14


def fill_holes(path: Path) -> None:
    """Let the holes of a file on a tmpfs take now what room they can ever take; a file on a disk is left alone. What the file
    holds, its size and its times stay as they are.

    Raises HostLacks (``no_space``), OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        seen = os.fstat(descriptor)
        if not seen.st_size or not is_in_memory(seen.st_dev):
            return
        with mmap.mmap(descriptor, 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
            mapped.madvise(_POPULATE_READ)
    except OSError as cause:
        if cause.errno != errno.EFAULT:
            raise
        raise HostLacks(
            f"{path} lies on a tmpfs, which has no room for all of its {format_size(seen.st_size)}",
            code="no_space",
            hint="free some space there, or keep Insula's state on a disk",
        ) from cause
    finally:
        os.close(descriptor)


def is_in_memory(device: int) -> bool:
    """By proc_pid_mountinfo(5): the third word is the device, the first one after the hyphen the file system's type."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[2] == wanted:
            return words[words.index("-") + 1] == "tmpfs"
    return False


def copy_sparse(source: int, target: int) -> None:
    """Copy an open file to an empty one, its holes as holes, by the kernel alone: a file system that can share blocks does.

    Raises OSError.
    """
    size, offset = os.fstat(source).st_size, 0
    os.ftruncate(target, size)
    while offset < size:
        start = next_data(source, offset)
        if start is None:
            return
        offset = os.lseek(source, start, os.SEEK_HOLE)
        while start < offset:
            copied = os.copy_file_range(source, target, offset - start, start, start)
            if not copied:
                raise OSError(errno.EIO, "the file became shorter")
            start += copied


def next_data(descriptor: int, offset: int) -> int | None:
    """Where a file has data from ``offset`` on; None when nothing but a hole follows. Raises OSError."""
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as cause:
        if cause.errno == errno.ENXIO:
            return None
        raise
