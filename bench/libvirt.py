"""The same machine in libvirt's hands, where libvirt is installed and runs one.

Its driver for QEMU is loaded into virsh (``qemu:///embed``, libvirt 6.1 and later): it does what it does in a daemon, without the
way there. All its files lie in a folder of ours, all its processes in a room of bubblewrap's, whose end is theirs. In there it is
nobody: it does what it does for an ordinary user, and touches nothing of the system's own libvirt.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from string import Template
from types import TracebackType
from typing import Final
from urllib.parse import quote
from xml.sax.saxutils import escape

from bench import ROOT
from bench.hand import AgentClient
from bench.world import World, scratch
from insula.host.sockets import connect_unix
from insula.images.record import Image
from insula.model.shape import most_memory
from insula.model.units import MIB, parse_size
from insula.store.machines import BoardRecord

_PATIENCE: Final = 300.0  # seconds
_QEMU: Final = "qemu-system-x86_64"
_NAME: Final = "bench"  # as in libvirt.xml
_NOBODY: Final = "65534"
_SIZE: Final = 10 << 30
_END: Final = b"that-was-all"
_KINDS: Final = {"tcg": "qemu", "kvm": "kvm"}  # what we call an accelerator: what libvirt calls its machines
_ROOT_PORT: Final = (
    '<controller type="pci" index="{number}" model="pcie-root-port"><target chassis="{number}"/>'
    '<address type="pci" domain="0" bus="0" slot="0x10" function="{function}" multifunction="on"/></controller>'
)


class Refused(Exception):
    """What virsh said in place of doing it."""


def runs(world: World) -> bool:
    """Whether libvirt is installed and starts the machine that is compared with; if it is and does not, why is said."""
    if not all(shutil.which(program) for program in ("virsh", "bwrap", _QEMU)):
        return False
    image, board = world.image("tiny"), world.board()
    if board.accelerator not in _KINDS:
        return False
    try:
        with scratch() as place, Virsh(place) as virsh:
            virsh.run("create", "--paused", prepare(place, image, board, "512M"))
            virsh.run("destroy", _NAME)
    except Refused as refused:
        print(f"libvirt does not run: {refused}", file=sys.stderr)
        return False
    return True


def version() -> str:
    return subprocess.run(["virsh", "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


class Virsh:
    """virsh with libvirt's driver in it, whose files lie in ``folder``, which is empty. A context manager."""

    def __init__(self, folder: Path) -> None:
        (folder / "etc").mkdir()
        (folder / "etc" / "qemu.conf").write_text('security_driver = "none"\n')
        room = ["bwrap", "--unshare-user", "--uid", _NOBODY, "--gid", _NOBODY, "--unshare-pid", "--die-with-parent"]
        room += ["--dev-bind", "/", "/", "--proc", "/proc", "--setenv", "HOME", str(folder)]
        for name in ("CACHE_HOME", "CONFIG_HOME", "DATA_HOME", "RUNTIME_DIR"):
            room += ["--setenv", f"XDG_{name}", f"{folder}/{name}"]
        words = [*room, "virsh", "--quiet", "--connect", f"qemu:///embed?root={quote(str(folder))}"]
        self.folder = folder
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )

    def __enter__(self) -> Virsh:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.communicate(timeout=_PATIENCE)  # it ends with its input, and the room with it
        self._process.kill()

    def run(self, *words: str | Path) -> None:
        """One of its commands. Raises Refused."""
        assert self._process.stdin is not None
        # What virsh reads it may repeat; that this has been said is known by the quotes that are gone.
        line = f"{shlex.join(map(str, words))}\necho {_END[:4].decode()}''{_END[4:].decode()}\n"
        try:
            os.write(self._process.stdin.fileno(), line.encode())
        except BrokenPipeError:
            raise Refused(self._said()) from None
        said = self._said()
        if errors := [line for line in said.splitlines() if line.startswith("error: ")]:
            raise Refused(" ".join(errors))

    def _said(self) -> str:
        assert self._process.stdout is not None
        found = b""
        while _END not in found:
            ready, _, _ = select.select([self._process.stdout], [], [], _PATIENCE)
            data = os.read(self._process.stdout.fileno(), 65_536) if ready else b""
            if not data:
                raise Refused(found.decode(errors="replace"))
            found += data
        return found.decode(errors="replace")


class Domain(AgentClient):
    """A running machine, by the command of virsh that starts it. When this returns the program ``true`` has run inside.

    A context manager; at its end the machine is gone.
    """

    def __init__(self, virsh: Virsh, *command: str | Path) -> None:
        self._virsh = virsh
        self._taken = 0
        virsh.run(*command)
        super().__init__(connect_unix(virsh.folder / "agent.sock"))
        self.greet()
        self.wait("true")

    def __enter__(self) -> Domain:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
        self._virsh.run("destroy", _NAME)

    def stand(self, still: bool) -> None:
        """Stop its CPUs, or let them go on."""
        self._virsh.run("suspend" if still else "resume", _NAME)

    def snapshot(self) -> None:
        """Its live snapshot: memory to a file while the guest runs, which then stands until its disk has an overlay."""
        self._taken += 1
        memory, head = (self._virsh.folder / f"{what}-{self._taken}" for what in ("memory", "head"))
        words = ["snapshot-create-as", _NAME, "--live", "--atomic"]
        words += ["--memspec", f"{memory},snapshot=external", "--diskspec", f"vda,snapshot=external,file={head}"]
        self._virsh.run(*words)

    def save(self, target: Path) -> None:
        """Memory and devices to ``target``. The machine is gone, as at the end of its context, which this is instead."""
        self.close()
        self._virsh.run("save", _NAME, target)


def prepare(folder: Path, image: Image, board: BoardRecord, size: str) -> Path:
    """The disk of a new machine, and the file that tells libvirt of it; ``size`` as of ``--memory``."""
    make_disk(folder, image.root_layer)
    target = folder / "machine.xml"
    target.write_text(description(folder, image, board, parse_size(size)))
    return target


def make_disk(folder: Path, below: Path) -> None:
    """The machine's disk, with nothing in it but what is ``below``."""
    target = folder / "disk.qcow2"
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(below), "-F", "qcow2", str(target), str(_SIZE)]
    subprocess.run(words, check=True)


def description(folder: Path, image: Image, board: BoardRecord, memory: int) -> str:
    """The machine in libvirt's words; its disk and its agent's socket lie in ``folder``. ``memory`` in bytes. Pure."""
    words = {
        "kind": _KINDS[board.accelerator],
        "memory": memory,
        "room": f"{most_memory(memory) // MIB}M",
        "machine": board.machine,
        "cpu": board.cpu,
        "emulator": shutil.which(_QEMU) or _QEMU,
        "kernel": image.kernel,
        "initrd": image.initrd,
        "cmdline": image.cmdline,
        "disk": folder / "disk.qcow2",
        "agent": folder / "agent.sock",
    }
    pieces = {
        "translation": '<tcg><tb-cache unit="MiB">128</tb-cache></tcg>' if board.accelerator == "tcg" else "",
        "ports": "".join(_ROOT_PORT.format(number=index + 1, function=index) for index in range(8)),
    }
    text = {name: escape(str(value), {'"': "&quot;"}) for name, value in words.items()}
    return Template((ROOT / "bench" / "libvirt.xml").read_text()).substitute(text | pieces)
