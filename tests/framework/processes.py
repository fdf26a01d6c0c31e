"""The processes of a machine, found from outside; ended and waited for without polling."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

from insula.host.watch import Watch
from insula.store import names


def processes_of(folder: Path) -> dict[str, int]:
    """The pids of a machine's ``qemu``, ``keeper`` and ``porter``.

    All three hold files in the machine's folder open or were started by one that does: the keeper and QEMU are found by
    their descriptors, the porter as the keeper's parent.
    """
    found: dict[str, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if any(str(folder) in target for target in _open_files(entry)):
                name = (entry / "comm").read_text().strip()
                found["qemu" if name.startswith("qemu") else "keeper" if "keeper" in name else name] = int(entry.name)
    if "keeper" in found:
        found["porter"] = int(Path(f"/proc/{found['keeper']}/stat").read_text().rpartition(")")[2].split()[1])
    return found


def _open_files(process: Path) -> Iterator[str]:
    for link in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was just closed; the others are open still
            yield os.readlink(link)


def inhabitants(folder: Path) -> list[int]:
    """The pids of processes in other mount namespaces that see something of ``folder``: those of a room or a jail."""
    ours, found = os.readlink("/proc/self/ns/mnt"), []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            theirs = os.readlink(entry / "ns/mnt") if entry.name.isdigit() else ours
            if theirs != ours and str(folder) in (entry / "mountinfo").read_text():
                found.append(int(entry.name))
    return found


def wait_settled(folder: Path) -> None:
    """Until the keeper's call has cleared the run folder of a machine that ended."""
    with Watch() as watch:
        watch.add(folder)
        while (folder / names.RUN).exists():
            assert watch.wait_change(timeout=30), "the run folder was not cleared"


def kill_and_wait(pid: int, gone: Iterable[int]) -> None:
    """Kill ``pid`` with signal 9 and return when all of ``gone`` have ended (at most 10 s)."""
    descriptors = []
    for each in gone:
        with contextlib.suppress(ProcessLookupError):
            descriptors.append(os.pidfd_open(each))
    os.kill(pid, signal.SIGKILL)
    for descriptor in descriptors:
        assert select.select([descriptor], [], [], 10)[0], "a process did not end"
        os.close(descriptor)
