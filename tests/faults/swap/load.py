"""Inside a guest that swaps: `python -m tests.faults.swap.load HOME`. A machine's memory is pushed out while snapshots of it are
taken; what is loaded from them is compared, byte by byte, with what QEMU itself wrote of the machine that stood.

Prints a line per snapshot: method, bytes of QEMU that were swapped out before, and after it was taken.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import insula
from insula.engines.qemu.changed import parse_rams
from insula.engines.qemu.memory import MAIN
from insula.engines.qemu.qmp import Monitor
from insula.isolation.inhabitants import inhabitants
from insula.store import names
from insula.store.machines import read_machine

_PROCESS_MADVISE: Final = 440
_PAGEOUT: Final = 21
_PATIENCE: Final = 300.0
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LOAD: Final = 1  # PT_LOAD, elf(5)


class Pushed:
    """Within the context the machine's memory is pushed out again and again."""

    def __init__(self, folder: Path) -> None:
        uuid = read_machine(folder).identity.uuid
        (self._pid,) = [pid for pid, name in inhabitants(folder, uuid).items() if name.startswith("qemu")]
        with Monitor(folder / names.RUN / names.QMP_SOCKET, _PATIENCE) as monitor:
            told = str(monitor.execute("human-monitor-command", {"command-line": "info ramblock"}))
        (self._ram,) = [ram for ram in parse_rams(told) if ram.name == MAIN]
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._push)

    def __enter__(self) -> Pushed:
        self.push()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def swapped(self) -> int:
        """Bytes of the process that are swapped out."""
        status = Path(f"/proc/{self._pid}/status").read_text()
        return int(status.partition("VmSwap:")[2].split()[0]) << 10

    def push(self) -> None:
        """process_madvise(2); there is no wrapper in the library."""
        place = struct.pack("QQ", self._ram.address, self._ram.length)
        process = os.pidfd_open(self._pid)
        try:
            if _LIBC.syscall(_PROCESS_MADVISE, process, place, 1, _PAGEOUT, 0) < 0:
                raise OSError(ctypes.get_errno(), "process_madvise")
        finally:
            os.close(process)

    def _push(self) -> None:
        while not self._done.is_set():
            self.push()
            self._done.wait(0.05)  # between two pushes


def dump(folder: Path, path: Path) -> str:
    """Have QEMU write all of the guest's physical memory; a sum of it and of where it lies."""
    with path.open("w+b") as file:
        with Monitor(folder / names.RUN / names.QMP_SOCKET, _PATIENCE) as monitor:
            monitor.execute("getfd", {"fdname": "dump"}, [file.fileno()])
            monitor.execute("dump-guest-memory", {"paging": False, "protocol": "fd:dump"})
        digest, size = hashlib.sha256(), 0
        for place, content in _loaded(path.read_bytes()):
            digest.update(struct.pack("<QQ", place, len(content)) + content)
            size += len(content)
    assert size >= read_machine(folder).spec.memory, "the dump is not whole"
    return digest.hexdigest()


def _loaded(core: bytes) -> Iterator[tuple[int, bytes]]:
    """The pieces of memory in a core file of 64 bits (elf(5)): physical address, content."""
    assert core[:5] == b"\x7fELF\x02"
    start, count = struct.unpack_from("<Q", core, 32)[0], struct.unpack_from("<H", core, 56)[0]
    for index in range(count):
        kind, _, offset, _, place, length = struct.unpack_from("<IIQQQQ", core, start + 56 * index)
        if kind == _LOAD:
            yield place, core[offset : offset + length]


def check(machine: insula.Machine, folder: Path, name: str) -> None:
    """Of the machine, which stands: a snapshot is the same when it is loaded."""
    with Pushed(folder) as pushed:
        before = pushed.swapped()
        snapshot = machine.snapshot(name)
        after = pushed.swapped()
    expected = dump(folder, folder.parent / "before")
    snapshot.restore(keep=False)
    assert dump(folder, folder.parent / "after") == expected, f"{name} is not what the machine was"
    print(snapshot.status.method, before, after, flush=True)


def main() -> None:
    home = Path(sys.argv[1])
    here = insula.connect(home)
    machine = here.run("tiny", name="swapped", memory="128M", network="none")
    folder = home / "machines" / machine.name
    fill = "head -c 12000000 /dev/urandom > /dev/shm/blob; md5sum /dev/shm/blob"
    expected = machine.exec("sh", "-c", fill, check=True).stdout
    with Pushed(folder):
        running = machine.snapshot("running")
    machine.pause()
    check(machine, folder, "changes")
    (folder / names.RUN / names.MEMORY).unlink()
    check(machine, folder, "whole")
    running.restore(keep=False)
    assert machine.exec("sh", "-c", "md5sum /dev/shm/blob", check=True).stdout == expected
    machine.delete(force=True)


if __name__ == "__main__":
    main()
