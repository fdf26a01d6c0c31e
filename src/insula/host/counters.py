"""What the kernel counts of processes and of pressure. Formats: proc(5); the kernel's ``Documentation/accounting/psi.rst`` and
``Documentation/scheduler/sched-stats.rst``."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

PRESSURES: Final = ("cpu", "memory", "io")
_HOST: Final = Path("/proc/pressure")
_MOST: Final = 1 << 20  # bytes read of any file here; none is that long
_TICK: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_TOTAL: Final = re.compile(rb"^some .*\btotal=([0-9]{1,18})$", re.MULTILINE)


class Thread(NamedTuple):
    """Nanoseconds a thread ran, and those in which it could have run and had to wait for a CPU."""

    ran: int
    waited: int


class Memory(NamedTuple):
    """Bytes: ``own`` would be free without the process, ``resident`` are those it has in memory, shared ones among them."""

    own: int
    resident: int


class Process:
    """A process that is looked at again and again. What is opened is its folder in /proc, which is never another's: a pid may be
    taken anew, a folder that is open reads as gone. All but `close` raise ProcessLookupError once it has ended."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._folder = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ProcessLookupError(f"{pid} has ended") from None

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._folder)

    def cpu_time(self) -> int:
        """Nanoseconds of CPU it has used, those of threads that have ended among them; counted in hundredths of a second."""
        words = self._read("stat").rpartition(b")")[2].split()  # its name may hold any character, so from its end
        return (int(words[11]) + int(words[12])) * _TICK

    def begun(self) -> float:
        """When it began, in seconds since the host started."""
        return int(self._read("stat").rpartition(b")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")

    def threads(self) -> dict[int, Thread]:
        """Its threads by their ids. Only a thread's own file tells of it alone: the process's is that of its first thread."""
        found = {}
        try:
            tasks = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._folder)
        except FileNotFoundError:
            raise ProcessLookupError(f"{self.pid} has ended") from None
        try:
            for name in os.listdir(tasks):
                with contextlib.suppress(ProcessLookupError):  # a thread that has just ended
                    ran, waited, _ = _read(f"{name}/schedstat", tasks).split()
                    found[int(name)] = Thread(int(ran), int(waited))
        finally:
            os.close(tasks)
        if not found:
            raise ProcessLookupError(f"{self.pid} has ended")
        return found

    def memory(self) -> Memory:
        sizes = dict.fromkeys((b"VmRSS", b"RssAnon", b"VmSwap"), 0)
        for line in self._read("status").splitlines():
            name, _, value = line.partition(b":")
            if name in sizes:
                sizes[name] = int(value.split()[0]) * 1024
        return Memory(sizes[b"RssAnon"] + sizes[b"VmSwap"], sizes[b"VmRSS"])

    def proportional(self) -> int:
        """Bytes it has in memory, shared ones divided among those who share them. Takes milliseconds. 0 where it may not be
        asked for."""
        with contextlib.suppress(PermissionError):
            for line in self._read("smaps_rollup").splitlines():
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
        return 0

    def cores(self) -> frozenset[int]:
        """The CPUs its first thread may run on, and so the others unless somebody moved them one by one."""
        return frozenset(os.sched_getaffinity(self.pid))

    def group(self) -> str:
        """Its control group of version 2, as a path below where that is mounted; empty where there is none."""
        for line in self._read("cgroup").splitlines():
            if line.startswith(b"0::/"):
                return os.fsdecode(line[4:])
        return ""

    def _read(self, name: str) -> bytes:
        return _read(name, self._folder)


def _read(name: str, folder: int) -> bytes:
    """A small file of /proc. Raises ProcessLookupError when what it tells of has ended."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        raise ProcessLookupError(name) from None
    try:
        data = os.read(descriptor, 65536)
        while data[-1:] not in (b"", b"\n") and len(data) < _MOST and (more := os.read(descriptor, 65536)):
            data += more
    finally:
        os.close(descriptor)
    if not data:
        raise ProcessLookupError(name)
    return data


def open_processes(pids: Iterable[int]) -> list[Process]:
    """Those of them that have not ended."""
    found = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            found.append(Process(pid))
    return found


def group_mount() -> Path | None:
    """Where control groups of version 2 are, also beside those of version 1. Format: proc(5), mountinfo."""
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        words = line.split()
        if words[words.index("-") + 1] == "cgroup2":
            return Path(words[4])
    return None


def host_pressure() -> dict[str, int]:
    """Microseconds in which something on this host stood for want of a resource, by its name; empty where the kernel does not
    tell."""
    return _pressures({name: _HOST / name for name in PRESSURES})


def group_pressure(folder: Path) -> dict[str, int]:
    """The same of what is in a control group, ``folder`` being its own in a mount of version 2; empty where there is none."""
    return _pressures({name: folder / f"{name}.pressure" for name in PRESSURES})


def _pressures(files: dict[str, Path]) -> dict[str, int]:
    found = {}
    for name, path in files.items():
        with contextlib.suppress(OSError):  # opening or reading: a kernel that was told not to count refuses either
            if match := _TOTAL.search(path.read_bytes()):
                found[name] = int(match[1])
    return found
