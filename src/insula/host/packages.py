"""The Debian packages Insula needs: which, why, which are missing, and how to install them.

Whether a package is there is told by a file of it: that costs microseconds, and holds on systems that are not Debian.
QEMU must also be new enough. Debian 12 carries it in its backports, which are added with the address of the host's own
apt sources and a low priority, so that nothing but the QEMU packages asked for comes from there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections import deque
from collections.abc import Callable, Collection, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from insula.errors import HostLacks
from insula.host.cache import cache_folder
from insula.host.files import write_atomic
from insula.host.process import find_program, run, spawn
from insula.model.architectures import ARCHITECTURES, debian_architecture


class Purpose(StrEnum):
    """What a package is needed for."""

    MACHINE = "running machines"
    JAIL = "jailing machines"
    IMAGE = "building images"
    SEAL = "encrypting snapshots"
    TPM = "machines with a TPM"
    NETWORK = "networks of machines"
    TESTS = "running the tests"
    FULL_TESTS = "running the long tests"


class Package(msgspec.Struct, frozen=True):
    """A Debian package. It is there when one of ``files`` exists (globs are allowed)."""

    name: str
    why: str
    purposes: frozenset[Purpose]
    files: tuple[str, ...]
    # Debian versions of QEMU and what belongs to it move together, and must be new enough.
    qemu: bool = False


QEMU_MINIMUM: Final = (8, 2)  # read-only memory images and mapped-ram

_HOST_QEMU: Final = {
    "amd64": ("qemu-system-x86", "x86_64"),
    "i386": ("qemu-system-x86", "i386"),
    "arm64": ("qemu-system-arm", "aarch64"),
    "armhf": ("qemu-system-arm", "arm"),
    "ppc64el": ("qemu-system-ppc", "ppc64"),
    "riscv64": ("qemu-system-riscv", "riscv64"),
    "s390x": ("qemu-system-s390x", "s390x"),
}

_MACHINE = frozenset({Purpose.MACHINE})
_IMAGE = frozenset({Purpose.IMAGE})
_TESTS = frozenset({Purpose.TESTS})
_FULL = frozenset({Purpose.FULL_TESTS})


def packages() -> tuple[Package, ...]:
    """All packages for this host's architecture."""
    name, target = _HOST_QEMU.get(debian_architecture(os.uname().machine), ("qemu-system-x86", "x86_64"))
    return (
        Package(name, "runs the machines", _MACHINE, (_program(f"qemu-system-{target}"),), qemu=True),
        Package("qemu-utils", "makes and checks disks (qemu-img)", _MACHINE, (_program("qemu-img"),), qemu=True),
        Package("ovmf", "the machines' UEFI", _MACHINE, ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_CODE.fd")),
        Package("bubblewrap", "the jail around each machine", frozenset({Purpose.JAIL}), (_program("bwrap"),)),
        Package("passt", "network of the machines, without privileges", _MACHINE, (_program("passt"),)),
        Package("util-linux", "starts each machine with its own user and limits", _MACHINE, (_program("setpriv"),)),
        Package("musl-tools", "compiles the agent and the keeper to small static programs", _MACHINE, (_program("musl-gcc"),)),
        Package("gcc", "compiles the agent and the keeper", _MACHINE, (_program("gcc"),)),
        Package("linux-libc-dev", "kernel headers for the same", _MACHINE, ("/usr/include/linux/prctl.h",)),
        Package("mmdebstrap", "builds images from the signed Debian archive", _IMAGE, (_program("mmdebstrap"),)),
        Package(
            "debian-archive-keyring", "the keys that sign the archive", _IMAGE, ("/usr/share/keyrings/debian-archive-keyring.*",)
        ),
        Package("uidmap", "lets an ordinary user build images", _IMAGE, (_program("newuidmap"),)),
        Package("e2fsprogs", "fills the images' file systems", _IMAGE, (_program("mke2fs"),)),
        Package("mtools", "fills the images' boot partition", _IMAGE, (_program("mcopy"),)),
        Package("mount", "mounts what package scripts may see", _IMAGE, (_program("mount"),)),
        Package(
            "libsodium23",
            "encrypts exported snapshots",
            frozenset({Purpose.SEAL, Purpose.TESTS}),
            (f"/usr/lib/{os.uname().machine}-linux-gnu/libsodium.so.*", "/usr/lib/libsodium.so.*", "/usr/lib64/libsodium.so.*"),
        ),
        Package("swtpm", "the TPM of machines that have one", frozenset({Purpose.TPM, Purpose.TESTS}), (_program("swtpm"),)),
        *_network_packages(),
        Package("git", "tells the tests which files belong to the project", _TESTS, (_program("git"),)),
        Package("libc6-dev", "lets gcc build the C parts with its own checks in them", _TESTS, ("/usr/include/stdio.h",)),
        Package("openssh-client", "makes the host keys of the tests' guests", _TESTS, (_program("ssh-keygen"),)),
        Package("shellcheck", "checks the shell scripts", _TESTS, (_program("shellcheck"),)),
        *_cross_compilers(),
    )


def _network_packages() -> list[Package]:
    purposes = frozenset({Purpose.NETWORK, Purpose.TESTS})
    return [
        Package("iproute2", "makes networks' links and holds machines to their rates", purposes, (_program("ip"),)),
        Package("nftables", "loads networks' rules into the kernel", purposes, (_program("nft"),)),
        Package("dnsmasq-base", "gives machines addresses and names", purposes, (_program("dnsmasq"),)),
    ]


def _cross_compilers() -> list[Package]:
    """Compilers for the agents of other architectures, each with the static libc it links."""
    here = debian_architecture(os.uname().machine)
    return [
        package
        for arch, (machine, _) in ARCHITECTURES.items()
        if arch != here
        for target in [f"{machine.replace('_', '-')}-linux-gnu"]
        for package in (
            Package(f"gcc-{target}", f"compiles the agent for {arch}", _FULL, (_program(f"{machine}-linux-gnu-gcc"),)),
            Package(
                f"libc6-dev-{arch}-cross",
                f"the C library of the agent for {arch}",
                _FULL,
                (f"/usr/{machine}-linux-gnu/lib/libc.a",),
            ),
        )
    ]


def _program(name: str) -> str:
    return f"bin:{name}"


def missing(purposes: Collection[Purpose]) -> list[Package]:
    """The packages that are needed for ``purposes`` and are not there, QEMU's also when it is too old."""
    needed = [package for package in packages() if package.purposes & frozenset(purposes)]
    absent = [package for package in needed if not _is_there(package)]
    if any(package.qemu for package in needed) and not any(package.qemu for package in absent) and not _qemu_is_new_enough():
        absent += [package for package in needed if package.qemu]
    return absent


def _is_there(package: Package) -> bool:
    return any(_exists(name) for name in package.files)


def _exists(name: str) -> bool:
    if name.startswith("bin:"):
        return find_program(name.removeprefix("bin:")) is not None
    path = Path(name)
    return any(path.parent.glob(path.name))


def _qemu_is_new_enough() -> bool:
    version = qemu_version()
    return version is None or version >= QEMU_MINIMUM


def qemu_version() -> tuple[int, int] | None:
    """Major and minor version of the installed qemu-img, which Debian builds together with all of QEMU; None without one."""
    program = find_program("qemu-img")
    if program is None:
        return None
    match = re.search(r"version (\d+)\.(\d+)", _said(program))
    return (int(match[1]), int(match[2])) if match else None


def _said(program: str) -> str:
    """What ``program --version`` says, remembered in the user's cache until the file is another: asking takes 10 ms."""
    status = os.stat(program)
    stamp = f"{program} {status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    note = cache_folder() / "qemu-version"
    with contextlib.suppress(OSError, ValueError):
        noted, _, words = note.read_text().partition("\n")
        if noted == stamp:
            return words
    words = run([program, "--version"], timeout=10).text
    with contextlib.suppress(OSError, HostLacks):  # a cache that cannot be written costs time, nothing else
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(note, f"{stamp}\n{words}".encode())
    return words


# -- installing -------------------------------------------------------------------------------------------------------


def ensure(
    purposes: Collection[Purpose], *, confirm: Callable[[str], bool] | None, progress: Callable[[str], object]
) -> list[Package]:
    """Install what is missing for ``purposes``; return what was installed.

    Root does it at once. Others need sudo, and ``confirm`` is asked first; None means nobody can be asked. Raises
    HostLacks: ``packages_missing`` (its hint is the exact command) when it may not or cannot be done, ``qemu_too_old``.
    """
    absent = missing(purposes)
    if not absent:
        return []
    progress("these Debian packages are missing:")
    for package in absent:
        progress(f"  {package.name}: {package.why}")
    plan = make_plan(absent)
    if plan.backports:
        progress(f"QEMU comes from {plan.backports}: this release of Debian carries one older than {_dotted(QEMU_MINIMUM)}")
    install(plan, confirm=confirm, progress=progress)
    if still := missing(purposes):
        names = " ".join(package.name for package in still)
        raise HostLacks(f"still missing after the installation: {names}", code="packages_missing", hint="see: insula doctor")
    return absent


class Plan(msgspec.Struct, frozen=True):
    """How to install ``packages``: a shell script for root, and the backports suite it adds, if any."""

    packages: tuple[Package, ...]
    script: str
    backports: str | None


def make_plan(absent: Iterable[Package], os_release: str | None = None) -> Plan:
    """The plan for this host; ``os_release`` is the text of os-release(5). Nothing is done yet."""
    absent = tuple(absent)
    release = _parse_os_release(os_release if os_release is not None else Path("/etc/os-release").read_text())
    suite = release.get("VERSION_CODENAME", "")
    too_old = release.get("ID") == "debian" and release.get("VERSION_ID", "").isdecimal() and int(release["VERSION_ID"]) < 13
    later = [package.name for package in absent if package.qemu and too_old]
    first = [package.name for package in absent if package.name not in later]
    lines = ["set -e", "export DEBIAN_FRONTEND=noninteractive", f"{_APT} update"]
    if first:
        lines.append(f"{_APT} install {' '.join(first)}")
    if not later:
        return Plan(absent, "\n".join(lines), None)
    backports = f"{suite}-backports"
    lines += [*_add_backports(suite), f"{_APT} update", f"{_APT} install -t {backports} {' '.join(later)}"]
    return Plan(absent, "\n".join(lines), backports)


# Another apt may be at work: wait for it, but not for ever.
_APT: Final = "apt-get -q --yes --no-install-recommends -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0"

_SOURCES: Final = "/etc/apt/sources.list.d/insula-backports.sources"
_PREFERENCES: Final = "/etc/apt/preferences.d/insula-backports"
_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"


def _add_backports(suite: str) -> list[str]:
    """Lines that add ``suite``'s backports from where the host gets ``suite`` itself, unless they are there already."""
    ask = f"apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' 'Release: {suite}"
    sources = [f"Suites: {suite}-backports", "Components: main", f"Signed-By: {_KEYRING}"]
    pin = ["Package: *", f"Pin: release n={suite}-backports", "Pin-Priority: 100"]
    pin += ["", "Package: qemu-*", f"Pin: release n={suite}-backports", "Pin-Priority: 500"]
    return [
        f'if [ -z "$({ask}-backports\')" ]; then',
        f"uri=$({ask}' | head -n 1)",
        f"printf '%s\\n' 'Types: deb' \"URIs: $uri\" {_quoted(sources)} >{_SOURCES}",
        f"printf '%s\\n' {_quoted(pin)} >{_PREFERENCES}",
        "fi",
    ]


def _quoted(lines: Iterable[str]) -> str:
    return " ".join(shlex.quote(line) for line in lines)


def install(plan: Plan, *, confirm: Callable[[str], bool] | None, progress: Callable[[str], object]) -> None:
    """Carry a plan out; ``progress`` hears apt's words. Raises as ``ensure``, and HostLacks (``apt_failed``)."""
    by_hand = f"sh -c {shlex.quote(plan.script)}"
    if find_program("apt-get") is None:
        raise _missing(plan, "install these with this system's package manager (the names are Debian's)")
    words = ["sh", "-c", plan.script]
    if os.geteuid() != 0:
        if find_program("sudo") is None:
            raise _missing(plan, f"run as root: {by_hand}")
        if confirm is None or not confirm("install them now with sudo?"):
            raise _missing(plan, f"run: sudo {by_hand}")
        words = ["sudo", "--", *words]
    status, said = _follow(words, progress)
    if status != 0:
        raise HostLacks(
            f"apt-get failed: {said[-1] if said else 'it said nothing'}", code="apt_failed", hint=f"by hand: {by_hand}"
        )


def _missing(plan: Plan, hint: str) -> HostLacks:
    names = " ".join(package.name for package in plan.packages)
    return HostLacks(f"these Debian packages are missing: {names}", code="packages_missing", hint=hint)


_WORTH_SAYING: Final = ("Need to get ", "Setting up ", "E: ", "W: ")


def _follow(words: list[str], progress: Callable[[str], object]) -> tuple[int, list[str]]:
    """Run a program to its end while ``progress`` hears what matters of its words; its status and last lines."""
    reader, writer = os.pipe()
    with open(reader, errors="replace") as lines:
        try:
            child = spawn(words, stdout=writer, stderr=writer)
        finally:
            os.close(writer)
        with child:
            last: deque[str] = deque(maxlen=12)
            for line in lines:
                last.append(line.rstrip())
                if line.startswith(_WORTH_SAYING):
                    progress(f"  {line.rstrip()}")
            return child.wait() or 0, list(last)


def _parse_os_release(text: str) -> dict[str, str]:
    """Format: os-release(5)."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {name: " ".join(shlex.split(value)) for name, value in pairs}


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
