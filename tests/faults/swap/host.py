"""A host that is itself one of our guests, with all that Insula needs, and a disk to swap to."""

from __future__ import annotations

import glob
import shutil
from pathlib import Path
from typing import Final

import click

import insula
from insula.engines.qemu.qmp import Monitor
from insula.host.native import native_path
from insula.store import names
from tests.faults.power.host import hand_over, plug
from tests.faults.power.tools import SOURCE, make_tools, python

_PROGRAMS: Final = ("qemu-system-x86_64", "bash", "sh", "bwrap", "setpriv", "prlimit", "setsid", "unshare", "true")
_FILES: Final = ("/usr/share/seabios/*", "/usr/share/qemu/*.bin", "/usr/share/qemu/*.rom", "/usr/lib/ipxe/qemu/*virtio*")
_SIZE: Final = 2 << 30
_SCRIPT: Final = """
set -e
disk() {
    for serial in /sys/block/vd*/serial; do
        [ "$(cat "$serial")" != "$1" ] || { serial=${serial%/serial} && echo "/dev/${serial##*/}"; }
    done
}
until [ "$(disk tools)" ] && [ "$(disk swap)" ]; do sleep 0.1; done
mkswap "$(disk swap)" > /dev/null
swapon "$(disk swap)"
mkdir -p /host
mount -t ext4 "$(disk tools)" /host
for part in dev proc sys; do mount --rbind /$part /host/$part; done
mount -t tmpfs tmp /host/tmp
cd /host
mkdir -p old
# Not a chroot: the kernel refuses user namespaces inside one.
exec unshare -m sh -c 'pivot_root . old && exec chroot . "$@"' sh "$@"
"""


def run_in_a_host_that_swaps(home: Path, folder: Path, name: str) -> str:
    """What `load.py` prints there. The machine ``name`` is the host."""
    tools = _make_tools(home, folder)
    swap = folder / "swap.raw"
    with swap.open("wb") as file:
        file.truncate(512 << 20)
    machine = insula.connect(home).run("tiny", name=name, memory="1G", network="none", cold=True)
    try:
        with Monitor(home / "machines" / name / names.RUN / names.QMP_SOCKET) as monitor:
            plug(monitor, "tools", "rp4", {"driver": "raw", "file": hand_over(monitor, "tools", tools)})
            plug(monitor, "swap", "rp5", {"driver": "raw", "file": hand_over(monitor, "swap", swap)})
        words = ["env", f"PYTHONPATH={SOURCE}", "HOME=/home", "PATH=/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE=1"]
        words += [python(), "-m", "tests.faults.swap.load", "/home/insula"]
        done = machine.exec("sh", "-c", _SCRIPT, "sh", *words)
    finally:
        machine.delete(force=True)
    assert done.code == 0, done.stdout + done.stderr
    return str(done.stdout)


def _make_tools(home: Path, folder: Path) -> Path:
    """A system with what the engine calls, our keeper, and the images and warm states of ``home``."""
    found = [path for program in _PROGRAMS if (path := shutil.which(program))]
    assert len(found) == len(_PROGRAMS)
    files = [file for pattern in _FILES for file in glob.glob(pattern)]
    tree = {"home/insula/images": home / "images", "home/insula/warm": home / "warm"}
    package = SOURCE.lstrip("/")
    tree |= {f"{package}/click": Path(click.__file__).parent}
    tree |= {f"{package}/insula/_native/bin/amd64/insula-keeper": native_path("insula-keeper")}
    return make_tools(folder, found, [*files, "/usr/bin/ldd", "/bin/bash", "/bin/sh"], tree, size=_SIZE)
