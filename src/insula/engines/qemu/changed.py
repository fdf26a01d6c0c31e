"""Saving a machine that goes on from a mapped memory file: the file is kept as it is, and only the pages that the machine has
changed since are read, from outside its QEMU, while it stands.

QEMU maps such a file privately, so whatever the guest writes becomes a page of QEMU's own, and the kernel knows which those are
(pagemap.py). They are few as long as the machine is young or idle; when they are not, this way is not offered. Of other
blocks, of which there is no file, all is taken: where such a block is QEMU's alone, a page it does not have yet is zeros.

What QEMU says of its memory is not believed but used: the addresses lead into that process's own memory and nowhere else, and
nothing is read that is larger than the machine.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from insula.engines.base import SaveOrder
from insula.engines.qemu.answers import add_fd, ask
from insula.engines.qemu.heads import PASSING
from insula.engines.qemu.memory import MAIN, PAGE, find_main, find_pieces, read_blocks
from insula.engines.qemu.pagemap import Run, count_pages, own_runs, pages_of, read_memory
from insula.engines.qemu.pieces import PREFIX
from insula.engines.qemu.qmp import Monitor, Refused
from insula.engines.qemu.stream import Pages
from insula.errors import DamagedRecord, InsulaError
from insula.isolation.inhabitants import inhabitants
from insula.model.units import MIB
from insula.store import names

# What the guest stands still for, in seconds: for looking through the pagemap, which takes the longer the larger the machine is
# and is measured each time, and for reading so many bytes. See docs/snapshots.md for the numbers.
_PAUSE: Final = 0.022
_READING: Final = 0.00075 / MIB
# A guest that has changed so much more when it stands than it had just before is let go on, and saved in another way.
_GROWTH: Final = 2
# Of so many looks that take too long one may be quick enough: what a busy host took from a look says nothing about the next.
_LOOKS: Final = 3
_END: Final = 1 << 62  # well below what an offset can be (off_t)
_MOST_OTHERS: Final = 64 * MIB
_LINE: Final = re.compile(r"(\S+) +\d+ \S+ +0x[0-9a-f]+ +0x([0-9a-f]+) +0x[0-9a-f]+ +0x([0-9a-f]+) +r[ow]", re.ASCII)

Block = tuple[str, int, Pages]


class Ram(msgspec.Struct, frozen=True):
    """A block of QEMU's memory: its name, its length in bytes, and its address in QEMU. ``private``: neither a file nor another
    process has a part in it."""

    name: str
    length: int
    address: int
    private: bool = False


class Copied(msgspec.Struct, frozen=True):
    """Content of blocks, in pieces: the block, and each piece's offset in it."""

    blocks: list[tuple[Ram, list[tuple[int, bytes]]]]

    def pages(self) -> list[Block]:
        """As `stream.compose` wants them."""
        return [(ram.name, ram.length, pages_of(pieces)) for ram, pieces in self.blocks]


class Changes(msgspec.Struct, frozen=True):
    """The way to what a machine has changed: its QEMU's memory, open, the blocks that are ``mapped`` from the file it was loaded
    from, and all ``others``."""

    mapped: list[Ram]
    others: list[Ram]
    pagemap: int
    memory: int

    def few(self) -> bool:
        """Whether they can be read while the guest stands. Raises OSError."""
        for _ in range(_LOOKS):
            began = time.perf_counter()
            changed = self._count(self._own()) * PAGE
            looking = time.perf_counter() - began
            if is_soon_read(looking, changed):
                return True
            if not is_soon_read(0.0, changed):
                break
        return False

    def read(self) -> Copied | None:
        """All of them, of the instant; None when they have become too many. The guest stands. Raises OSError."""
        own = self._own()
        if not is_soon_read(0.0, self._count(own) * PAGE // _GROWTH):
            return None
        copied = [self._copy(ram, runs) for ram, runs in zip(self.mapped, own, strict=True)]
        return Copied([*copied, *(self._whole(ram) for ram in self.others)])

    def _own(self) -> list[list[Run]]:
        return [own_runs(self.pagemap, ram.address, ram.length) for ram in self.mapped]

    def _count(self, own: list[list[Run]]) -> int:
        """How many pages are to be read: ``own`` ones, and those of the other blocks."""
        return sum(map(count_pages, own)) + sum(count_pages(self._there(ram)) for ram in self.others)

    def _there(self, ram: Ram) -> list[Run]:
        """Where a block that no file is behind can be other than zeros."""
        return own_runs(self.pagemap, ram.address, ram.length) if ram.private else [(0, ram.length // PAGE)]

    def _whole(self, ram: Ram) -> tuple[Ram, list[tuple[int, bytes]]]:
        """Zeros are said, too: what loads it has something else there, perhaps."""
        runs = self._there(ram)
        return ram, sorted([*self._copy(ram, runs)[1], *zeros_between(runs, ram.length)])

    def _copy(self, ram: Ram, runs: list[Run]) -> tuple[Ram, list[tuple[int, bytes]]]:
        pieces = [
            (start * PAGE, read_memory(self.memory, ram.address + start * PAGE, (end - start) * PAGE)) for start, end in runs
        ]
        return ram, pieces


def zeros_between(runs: list[Run], length: int) -> list[tuple[int, bytes]]:
    """Pure: the pieces of zeros around ``runs`` in a block of ``length`` bytes."""
    edges = [0, *(edge * PAGE for run in runs for edge in run), length]
    return [(start, bytes(end - start)) for start, end in zip(edges[::2], edges[1::2], strict=True) if end > start]


def is_soon_read(looking: float, changed: int) -> bool:
    """Pure: whether a machine stands only for a moment while ``changed`` bytes are read, after ``looking`` seconds for which.

    Looking counts twice: it is what a busy host makes longest.
    """
    return 2 * looking + changed * _READING <= _PAUSE


@contextlib.contextmanager
def changes(monitor: Monitor, run: Path, order: SaveOrder) -> Iterator[Changes | None]:
    """What the machine has changed since it was loaded; None when this host, or this machine, does not let us see that.

    ``order.memory`` is then the file that it was loaded from.
    """
    with contextlib.ExitStack() as stack:
        found = None
        try:
            found = _find(monitor, run, order, stack)
        except (OSError, Refused, DamagedRecord):
            order.memory.unlink(missing_ok=True)
        yield found


def _find(monitor: Monitor, run: Path, order: SaveOrder, stack: contextlib.ExitStack) -> Changes | None:
    base = run / names.MEMORY
    if not base.exists() or os.sysconf("SC_PAGE_SIZE") != PAGE:
        return None
    rams = _rams(monitor)
    main = [ram for ram in rams if ram.name == MAIN and ram.length == order.size]
    if len(main) != 1:
        return None
    file = os.open(base, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    stack.callback(os.close, file)
    blocks = read_blocks(file)
    find_main(blocks, order.size)
    pieces = {PREFIX + name for name in find_pieces(blocks)}
    mapped = [ram for ram in rams if ram.name in pieces]
    others = [ram for ram in rams if ram.name != MAIN and ram not in mapped]
    if sum(ram.length for ram in others) > _MOST_OTHERS:
        return None
    process = _process(monitor, run, order, stack)
    if process is None:
        return None
    pagemap, memory, maps = (_opened(name, stack, process) for name in ("pagemap", "mem", "maps"))
    others = _told_private(others, maps)
    os.link(base, order.memory, follow_symlinks=False)
    return Changes([*main, *mapped], others, pagemap, memory)


def read_ahead(monitor: Monitor, run: Path, order: SaveOrder) -> None:
    """Read all of QEMU's memory once, so that there is a page wherever one is looked for: the guest need not stand while that is
    done. Where this host does not let us, nothing happens."""
    piece = bytearray(MIB)
    with contextlib.suppress(OSError, Refused), contextlib.ExitStack() as stack:
        process = _process(monitor, run, order, stack)
        if process is not None:
            memory = _opened("mem", stack, process)
            for ram in _rams(monitor):
                for offset in range(0, ram.length, MIB):
                    os.preadv(memory, [memoryview(piece)[: min(MIB, ram.length - offset)]], ram.address + offset)


def _rams(monitor: Monitor) -> list[Ram]:
    return parse_rams(ask(monitor, str, "human-monitor-command", {"command-line": "info ramblock"}))


def parse_rams(untrusted: str) -> list[Ram]:
    """Pure: the answer to HMP's ``info ramblock`` (QEMU's ``system/physmem.c``, ram_block_format), columns: name, page size,
    offset, used length, length, host's virtual address, whether it is read-only. None at all when a line is not understood."""
    found = []
    for line in untrusted.splitlines()[1:]:
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            return []
        ram = Ram(match[1], int(match[2], 16), int(match[3], 16))
        if ram.length % PAGE or ram.address % PAGE or not ram.address or ram.address + ram.length > _END:
            return []
        found.append(ram)
    return found


def _told_private(rams: list[Ram], maps: int) -> list[Ram]:
    with os.fdopen(os.dup(maps)) as file:
        private = private_mappings(file.read())

    def is_private(ram: Ram) -> bool:
        return any(start <= ram.address and ram.address + ram.length <= end for start, end in private)

    return [msgspec.structs.replace(ram, private=is_private(ram)) for ram in rams]


def private_mappings(text: str) -> list[Run]:
    """Pure: the addresses of private memory that no file is behind; what lies together is one. Format: proc(5), maps."""
    found: list[Run] = []
    for line in text.splitlines():
        words = line.split(maxsplit=5)
        start, end = (int(word, 16) for word in words[0].split("-"))
        if words[1].endswith("p") and words[4] == "0":
            if found and found[-1][1] == start:
                start = found.pop()[0]
            found.append((start, end))
    return found


def _process(monitor: Monitor, run: Path, order: SaveOrder, stack: contextlib.ExitStack) -> int | None:
    """The /proc folder of the QEMU behind the monitor, open. A machine can have two (run.next), so that it is the right one is
    proved: it holds a file that was just handed to it, and that nobody else has."""
    token = os.memfd_create("insula-which", os.MFD_CLOEXEC)
    try:
        number = add_fd(monitor, token, {"opaque": PASSING})
        stack.callback(_take_back, monitor, number)
        for pid, name in inhabitants(run.parent, order.uuid).items():
            if name.startswith("qemu"):
                with contextlib.suppress(OSError):
                    folder = _opened(f"/proc/{pid}", stack)
                    if _holds(folder, os.fstat(token)):
                        return folder
    finally:
        os.close(token)
    return None


def _holds(process: int, wanted: os.stat_result) -> bool:
    descriptors = os.open("fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=process)
    try:
        for name in os.listdir(descriptors):
            with contextlib.suppress(FileNotFoundError):
                seen = os.stat(name, dir_fd=descriptors)
                if (seen.st_dev, seen.st_ino) == (wanted.st_dev, wanted.st_ino):
                    return True
    finally:
        os.close(descriptors)
    return False


def _opened(path: str, stack: contextlib.ExitStack, folder: int | None = None) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    stack.callback(os.close, descriptor)
    return descriptor


def _take_back(monitor: Monitor, number: int) -> None:
    with contextlib.suppress(InsulaError):
        monitor.execute("remove-fd", {"fdset-id": number})
