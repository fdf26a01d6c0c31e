"""The processes of a machine, found from outside; ended and waited for without polling."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import stat
from collections.abc import Iterable
from pathlib import Path

from insula.host.watch import Watch
from insula.store import names


def processes_of(folder: Path) -> dict[str, int]:
    """The pids of a machine's ``qemu``, ``keeper`` and ``porter``: each has QEMU's words on its command line.

    What they hold open is not asked: of a program that may not be dumped the kernel shows that to root alone.
    """
    uuid = json.loads((folder / names.RECORD).read_bytes())["identity"]["uuid"].encode()
    found: dict[str, int] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if uuid in words and (kind := _kind(words)):
                found[kind] = int(entry.name)
    return found


def _kind(words: list[bytes]) -> str | None:
    if os.path.basename(words[0]).startswith(b"qemu-system-"):
        return "qemu"
    return {b"inner": "keeper", b"porter": "porter"}.get(words[1])


def written_files(pid: int) -> dict[tuple[int, int], str]:
    """The regular files that a process can write by what it has open: device and inode, and a name it was opened by."""
    found = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            flags = int(Path(f"/proc/{pid}/fdinfo/{link.name}").read_text().split("flags:")[1].split()[0], 8)
            seen = link.stat()
            if flags & os.O_ACCMODE != os.O_RDONLY and stat.S_ISREG(seen.st_mode):
                found[seen.st_dev, seen.st_ino] = os.readlink(link)
    return found


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
