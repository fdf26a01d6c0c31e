"""A host that is itself one of our guests, with a disk whose every write is logged."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

import insula
from insula.engines.qemu.engine import QemuEngine
from insula.engines.qemu.qmp import Monitor
from insula.store import names
from insula.store.names import Home
from tests.faults.power.marks import DISK, FILE_SYSTEM
from tests.faults.power.tools import SOURCE, make_tools, pack, python

# Nothing is written to the disk by itself that nobody asked for: a real host may be so unlucky.
_OPTIONS: Final = "noauto_da_alloc,commit=900,noatime"
_SCRIPT: Final = f"""
set -e
disk() {{
    for serial in /sys/block/vd*/serial; do
        [ "$(cat "$serial")" != "$1" ] || {{ serial=${{serial%/serial}} && echo "/dev/${{serial##*/}}"; }}
    done
}}
until [ "$(disk tools)" ] && [ "$(disk logged)" ]; do sleep 0.1; done
echo 0 > /proc/sys/vm/dirty_writeback_centisecs
mkdir -p /host
mount -t ext4 -o ro "$(disk tools)" /host
mount -t tmpfs tmp /host/tmp
mount --bind /dev /host/dev
mount -t proc proc /host/proc
mount -t ext4 -o {_OPTIONS} "$(disk logged)" /host/home
ln -s "$(disk logged)" /host/tmp/disk
exec chroot /host "$@"
"""


class Doomed:
    """What was found out: the disk as it was before, and the log of all that was written to it."""

    def __init__(self, before: Path, log: Path, said: str) -> None:
        self.before, self.log, self.said = before, log, said


def prepare_disk(home: Path, folder: Path) -> Path:
    """The doomed host's disk: a file system with the images of ``home`` in the state folder ``insula``, and room for marks."""
    tree = folder / "tree"
    (tree / "insula").mkdir(parents=True)
    shutil.copytree(home / "images", tree / "insula/images", ignore=_other_images(home))
    disk = pack(
        tree, folder / "before.raw", FILE_SYSTEM, "-m", "0", "-J", "size=8", "-E", "lazy_itable_init=0,lazy_journal_init=0"
    )
    os.truncate(disk, DISK)
    return disk


def _other_images(home: Path) -> Any:
    tiny = json.loads((home / "images" / names.IMAGE_NAMES).read_bytes())["names"]["tiny"]
    return lambda folder, found: [name for name in found if len(name) == 64 and name != tiny]


def run_until_the_end(home: Path, folder: Path, name: str, **settings: Any) -> Doomed:
    """Let a host do its work; ``settings`` are those of `load.py`. The machine ``name`` is it."""
    before = prepare_disk(home, folder)
    disk, log = folder / "disk.raw", folder / "log.raw"
    shutil.copyfile(before, disk)
    log.touch()
    tools = make_tools(folder)
    board = QemuEngine(Home(home)).choose_board("amd64")
    settings["board"] = msgspec.to_builtins(board)
    machine = insula.connect(home).run("tiny", name=name, memory="768M", network="none", cold=True)
    try:
        with Monitor(home / "machines" / name / names.RUN / names.QMP_SOCKET) as monitor:
            plug(monitor, "tools", "rp4", {"driver": "raw", "file": hand_over(monitor, "tools", tools, write=False)}, write=False)
            logged = {"file": hand_over(monitor, "disk", disk), "log": hand_over(monitor, "log", log)}
            plug(monitor, "logged", "rp5", {"driver": "blklogwrites", "log-sector-size": 512, **logged})
        said = _work(machine, settings)
    finally:
        machine.delete(force=True)
    return Doomed(before, log, said)


def _work(machine: insula.Machine, settings: dict[str, Any]) -> str:
    words = ["env", f"PYTHONPATH={SOURCE}", "INSULA_TEST_RUN=inside", "PATH=/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE=1"]
    words.append("INSULA_OVERCOMMIT=16")  # its guests are small programs that only say they have memory
    words += [python(), "-m", "tests.faults.power.load", "/home/insula", "/tmp/disk", json.dumps(settings)]
    done = machine.exec("sh", "-c", _SCRIPT, "sh", *words)
    said: str = done.stdout + done.stderr
    assert done.code == 0, said
    return said


def hand_over(monitor: Monitor, node: str, path: Path, *, write: bool = True) -> str:
    """A file handed to QEMU, as a node."""
    with _opened(path, os.O_RDWR if write else os.O_RDONLY) as descriptor:
        number = monitor.execute("add-fd", {"opaque": node}, [descriptor])["fdset-id"]
    words = {"driver": "file", "node-name": node, "filename": f"/dev/fdset/{number}", "read-only": not write}
    monitor.execute("blockdev-add", words)
    return node


def plug(monitor: Monitor, name: str, port: str, node: dict[str, object], *, write: bool = True) -> None:
    """Give the machine a further disk, with the serial number ``name``."""
    monitor.execute("blockdev-add", {"node-name": f"{name}-disk", **node, "read-only": not write})
    monitor.execute("device_add", {"driver": "virtio-blk-pci", "id": name, "drive": f"{name}-disk", "bus": port, "serial": name})


@contextlib.contextmanager
def _opened(path: Path, access: int) -> Iterator[int]:
    descriptor = os.open(path, access | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
