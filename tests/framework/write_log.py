"""What a disk was told, in order: the log that QEMU's ``blklogwrites`` driver keeps, and what a power cut may leave of it.

Format: Linux's dm-log-writes, ``Documentation/admin-guide/device-mapper/log-writes.rst``. A first sector describes the log; then
comes an entry in a sector of its own for each request, its data in the sectors after it. All integers are little-endian.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_SUPER: Final = struct.Struct("<QQQI")
_ENTRY: Final = struct.Struct("<QQQQ")
_MAGIC: Final = 0x6A736677736872
_FLUSH, _FUA, _DISCARD = 1, 2, 4
_SECTOR: Final = 512  # what positions and lengths are counted in
PIECE: Final = 4096  # what a disk writes whole or not at all: ext4's block, and what today's disks call a sector


class Request(NamedTuple):
    """One request of the guest's. ``at``: bytes from the disk's beginning; ``where``: those from the log's beginning of its
    ``length`` bytes of data. A flush has none."""

    at: int
    where: int
    length: int
    flush: bool


class WriteLog:
    """The requests in a log, in the order in which the disk took them."""

    def __init__(self, path: Path) -> None:
        self._content = memoryview(path.read_bytes())
        magic, version, _, self._sector = _SUPER.unpack_from(self._content)
        assert (magic, version) == (_MAGIC, 1), "not a log of writes"
        self.requests = list(self._scan())

    def _scan(self) -> Iterator[Request]:
        position = self._sector
        while position + self._sector <= len(self._content):
            sector, count, flags, _ = _ENTRY.unpack_from(self._content, position)
            position += self._sector
            length = 0 if flags & _DISCARD else count * _SECTOR
            yield Request(sector * _SECTOR, position, length, bool(flags & _FLUSH))
            assert not flags & _FUA, "the guest's kernel turns these into flushes for such a disk"
            position += -(-length // self._sector) * self._sector

    def data(self, request: Request) -> memoryview:
        return self._content[request.where : request.where + request.length]


class Disk:
    """A disk as it was at some request, kept in the file ``path``. It only moves forward."""

    def __init__(self, log: WriteLog, path: Path) -> None:
        self._log = log
        self._path = path
        self._done = 0  # requests before this one are on the disk

    def advance(self, position: int) -> list[Request]:
        """Let the disk hold what was made sure of when power went just before the request ``position``.

        Returns what had been written since the last flush: of that anything may be there, or nothing.
        """
        requests = self._log.requests
        last = max((n for n in range(self._done, position) if requests[n].flush), default=self._done - 1)
        with self._path.open("r+b") as file:
            for request in requests[self._done : last + 1]:
                self._write(file.fileno(), request, None)
        self._done = last + 1
        return [request for request in requests[self._done : position] if request.length]

    def cut(self, target: Path, unsure: list[Request], chance: random.Random, share: float) -> None:
        """Copy the disk to ``target`` with about ``share`` of the pieces of ``unsure`` on it, chosen by ``chance``."""
        with self._path.open("rb") as file:
            copy_sparse(file.fileno(), target)
        with target.open("r+b") as file:
            for request in unsure:
                self._write(file.fileno(), request, (chance, share))

    def _write(self, target: int, request: Request, some: tuple[random.Random, float] | None) -> None:
        data = self._log.data(request)
        for start in range(0, len(data), PIECE) if some else (0,):
            if some is None:
                os.pwrite(target, data, request.at)
            elif some[0].random() < some[1]:
                os.pwrite(target, data[start : start + PIECE], request.at + start)


def copy_sparse(source: int, target: Path) -> None:
    """Copy a file, holes left out."""
    size = os.fstat(source).st_size
    with target.open("wb") as file:
        file.truncate(size)
        offset = 0
        while offset < size:
            try:
                offset = os.lseek(source, offset, os.SEEK_DATA)
            except OSError:  # nothing but a hole follows
                return
            end = os.lseek(source, offset, os.SEEK_HOLE)
            while offset < end:
                offset += os.copy_file_range(source, file.fileno(), end - offset, offset, offset)
