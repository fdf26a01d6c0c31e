"""Which QEMU is here and what it can do; found out once per build and host boot, kept under ``host/``, and true again tomorrow
because the notes are thrown away when the program's file or the boot changes."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import Final

import msgspec

from insula.errors import HostLacks, InsulaError
from insula.host.accelerators import Proof, payload_digest, prove
from insula.host.digest import digest_of
from insula.host.facts import boot_id
from insula.host.process import find_program, run
from insula.isolation.roots import RootPlan
from insula.store.machines import BoardRecord
from insula.store.names import Home
from insula.store.records import read_record, write_record

LOWEST: Final = (8, 2)
_MAPPED_RAM: Final = 9
_BINARIES: Final = {"amd64": "qemu-system-x86_64"}
# Tried in this order; the first that proves itself is used.
ACCELERATORS: Final = ("kvm", "tcg")
_DATA_FOLDERS: Final = ("/usr/share/qemu", "/usr/share/seabios", "/usr/lib/ipxe/qemu", "/usr/share/OVMF")
_MODULES: Final = "/usr/lib/*/qemu/*.so"

# Emulated: no Intel model, because a kernel that works around Meltdown on an emulated CPU flushes QEMU's translation table at
# every system call (14 times slower calls were measured); no family of AMD's that needs thunks for returns either, hence the
# family and model that TCG itself gives its own CPU; what TCG cannot emulate taken away, so nothing is warned of; of the level
# x86-64-v3, so that every current distribution runs.
EMULATED_CPU: Final = "EPYC-v1,family=15,model=107,stepping=1,-fxsr-opt,-misalignsse,-osvw,-topoext,-nrip-save,-xsavec,-svm"


class Build(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One QEMU: its program, version (``10.0.2``) and the versioned name behind its ``q35``."""

    binary: str
    version: str
    machine: str


class Notes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was found out about a build since the host booted."""

    version: int
    rests_on: str
    build: Build
    proofs: dict[str, Proof]


def has_mapped_ram(build: Build) -> bool:
    """Pure: whether it is of a version that can write memory to fixed places of a file."""
    return int(build.version.partition(".")[0]) >= _MAPPED_RAM


def find_build(arch: str) -> str:
    """The program that runs machines of ``arch``. Raises HostLacks (``program_missing``, ``arch_unsupported``)."""
    name = _BINARIES.get(arch)
    if name is None:
        raise HostLacks(f"machines of architecture {arch} cannot be run yet", code="arch_unsupported", hint="use an amd64 image")
    path = find_program(name)
    if path is None:
        raise HostLacks("QEMU is not installed", code="program_missing", hint="run: insula doctor --fix")
    return path


def learn(home: Home, arch: str, *, fresh: bool = False) -> Notes:
    """What is known of the QEMU for ``arch``, found out now if need be. Raises HostLacks (also ``qemu_too_old``)."""
    binary = find_build(arch)
    rests_on = _rests_on(binary)
    path = home.host / f"qemu-{arch}.json"
    if not fresh:
        try:
            notes = read_record(path, Notes)
            if notes.rests_on == rests_on:
                return notes
        except (OSError, InsulaError):
            pass
    build = ask(binary)
    proofs = {name: prove(binary, name, EMULATED_CPU if name == "tcg" else "host") for name in ACCELERATORS}
    notes = Notes(1, rests_on, build, proofs)
    try:
        home.prepare()
        write_record(path, notes)
    except (OSError, HostLacks):
        pass  # a home that cannot be written is told by whoever must write there
    return notes


def _rests_on(binary: str) -> str:
    """Changes when the program, the boot, the right to use /dev/kvm, or our proof changes."""
    status = Path(binary).resolve().stat()
    words = [binary, status.st_size, status.st_mtime_ns, status.st_ino, boot_id(), payload_digest(), EMULATED_CPU]
    try:
        device = Path("/dev/kvm").stat()
        words += [device.st_mode, device.st_uid, device.st_gid]
    except OSError:
        words.append("no kvm")
    return digest_of(repr(words).encode())[:32]


def ask(binary: str) -> Build:
    """What the program ``binary`` says it is. Raises HostLacks (``qemu_too_old``, ``not_qemu``)."""
    version = parse_version(run([binary, "-version"]).text)
    if tuple(int(part) for part in version.split(".")[:2]) < LOWEST:
        raise HostLacks(
            f"QEMU {version} is too old: {'.'.join(map(str, LOWEST))} or later is needed",
            code="qemu_too_old",
            hint="to install a later one: insula doctor --fix",
        )
    return Build(binary, version, parse_machine(run([binary, "-machine", "help"]).text))


def parse_version(text: str) -> str:
    """Pure: ``10.0.2`` out of ``QEMU emulator version 10.0.2 (Debian …)``."""
    match = re.search(r"version (\d+\.\d+(?:\.\d+)?)", text)
    if match is None:
        raise HostLacks(f"this is not QEMU: {text.splitlines()[0] if text else 'it said nothing'}", code="not_qemu")
    return match[1]


def parse_machine(text: str) -> str:
    """Pure: what ``q35`` means, from ``-machine help``. A record keeps the versioned name, whose hardware never changes."""
    match = re.search(r"^q35\s.*\(alias of (pc-q35-[\d.]+)\)", text, re.MULTILINE)
    if match is None:
        raise HostLacks("this QEMU has no q35 machine", code="not_qemu")
    return match[1]


def choose(notes: Notes, former: BoardRecord | None) -> BoardRecord:
    """Pure: the board for the next start. Raises HostLacks (``no_accelerator``)."""
    accelerator = next((name for name in ACCELERATORS if name in notes.proofs and notes.proofs[name].works), None)
    if accelerator is None:
        reasons = "; ".join(f"{name}: {proof.detail}" for name, proof in notes.proofs.items())
        raise HostLacks(f"nothing on this host runs a guest ({reasons})", code="no_accelerator", hint="run: insula doctor")
    cpu = EMULATED_CPU if accelerator == "tcg" else "host"
    if former is None:
        return BoardRecord(notes.build.machine, cpu, notes.build.version, accelerator)
    kept = former.cpu if former.accelerator == accelerator else cpu
    return BoardRecord(former.machine, kept, notes.build.version, accelerator)


def fingerprint(build: Build, board: BoardRecord) -> str:
    """See `Engine.fingerprint`."""
    status = Path(build.binary).resolve().stat()
    words: list[object] = [build.version, status.st_size, status.st_mtime_ns, board]
    if board.accelerator != "tcg":
        words += _host_cpu(Path("/proc/cpuinfo").read_text())
    return digest_of(repr(words).encode())


def _host_cpu(cpuinfo: str) -> list[str]:
    """Pure: what says which CPU it is, of the first one in proc(5)'s cpuinfo."""
    first = cpuinfo.split("\n\n", 1)[0].splitlines()
    return [line for line in first if line.startswith(("vendor_id", "model", "cpu family", "stepping", "microcode", "flags"))]


def root_plan(build: Build, keeper: Path, probe: Path | None = None) -> RootPlan:
    """What the jail of ``build`` must hold, and ``probe`` if that is to try it."""
    modules = tuple(Path(path) for path in sorted(glob.glob(_MODULES)))
    folders = tuple(Path(path) for path in _DATA_FOLDERS if Path(path).is_dir())
    return RootPlan((Path(build.binary), *modules), folders, keeper, probe)
