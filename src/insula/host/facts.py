"""Probes of this host: each does the thing in question and says what happened. None leaves anything behind.

What QEMU and its accelerators can do is probed by the engine.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from insula.errors import ChildFailed, HostLacks
from insula.host.cgroup_trees import find_trees, kind_of
from insula.host.files import free_bytes
from insula.host.namespaces import package_namespace
from insula.host.process import find_program, run
from insula.model.doctor import Fact, FactState
from insula.model.units import GIB, format_size

_PATIENCE: Final = 30.0  # seconds; a probe takes milliseconds unless the host is very busy


def user_namespaces() -> Fact:
    """May this user make a user namespace? The jail of every machine is made of one."""
    name = "user namespaces"
    try:
        run(["unshare", "--user", "--map-root-user", "true"], timeout=_PATIENCE)
    except (ChildFailed, HostLacks) as refusal:
        return Fact(
            name, FactState.MISSING, refusal.message, "no jail can be built: a machine runs only with --insecure", _userns_fix()
        )
    return Fact(name, FactState.OK, "one was made")


def _userns_fix() -> str:
    """The switch that is off: distributions have three different ones."""
    for path, wrong, right in (
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces=15000"),
    ):
        if _text(path) == wrong:
            return f"sudo sysctl -w {right}"
    return "let the container that Insula runs in make user namespaces (docker: --security-opt seccomp=unconfined)"


def id_ranges() -> Fact:
    """Can 65536 ids be mapped into a namespace? Images are built in one, where package scripts may be root."""
    name = "id ranges"
    try:
        with package_namespace():
            return Fact(name, FactState.OK, "65536 ids were mapped into a namespace")
    except HostLacks as refusal:
        user = os.environ.get("USER", str(os.geteuid()))
        fix = refusal.hint or f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
        return Fact(name, FactState.LIMITED, refusal.message, "images cannot be built by this user", fix)


_KINDS: Final = {"v1": "version 1", "v2": "version 2", "hybrid": "hybrid (version 1 with an empty 2)"}


def cgroups() -> Fact:
    """Which cgroups are there, and may groups be made in them? They share CPU and memory out among machines."""
    name = "cgroups"
    trees = find_trees()
    if not trees:
        costs, fix = "machines cannot be given shares of CPU and memory", "sudo mount -t cgroup2 none /sys/fs/cgroup"
        return Fact(name, FactState.LIMITED, "none are mounted", costs, fix)
    kind = _KINDS[kind_of(trees)]
    wanted = {"cpu", "memory", "pids"}
    have = {word for tree in trees if _may_make_group(tree.base) for word in tree.controllers}
    if wanted <= have:
        also = "".join(f", {word}" for word in ("cpuset", "blkio", "io") if word in have)
        return Fact(name, FactState.OK, f"{kind}; groups can be made for cpu, memory, pids{also}")
    fix = _cgroups_fix(is_root=os.geteuid() == 0, is_new=kind == _KINDS["v2"])
    lacking = ", ".join(sorted(wanted - have))
    costs = "machines get no limits of these, and shares of the CPU by niceness"
    return Fact(name, FactState.LIMITED, f"{kind}; none can be made for {lacking}", costs, fix)


def _cgroups_fix(*, is_root: bool, is_new: bool) -> str:
    if not is_root:
        return "systemd-run --user --scope -p Delegate=yes -- $SHELL" if is_new else "run as root: sudo insula"
    if is_new:
        return "echo +cpu +memory +pids > /sys/fs/cgroup/cgroup.subtree_control"
    return (
        "mount them to be written (in a container: --privileged), and boot with cgroup_enable=memory if that is what is missing"
    )


def _may_make_group(parent: Path) -> bool:
    group = parent / f"insula-probe-{os.urandom(4).hex()}"
    try:
        group.mkdir()
        group.rmdir()
    except OSError:
        return False
    return True


_SYS_USERFAULTFD: Final = {"x86_64": 323, "aarch64": 282, "riscv64": 282, "s390x": 355, "i686": 374}
_UFFD_NEW: Final = 0xAA00  # linux/userfaultfd.h: USERFAULTFD_IOC_NEW
_UFFDIO_API: Final = 0xC018AA3F
_UFFD_API: Final = 0xAA
_DEBIANS_KERNEL: Final = "sudo apt-get install linux-image-amd64 && sudo reboot"  # one that can, 5.7 or later
_WRITE_PROTECT: Final = 1  # UFFD_FEATURE_PAGEFAULT_FLAG_WP


def userfaultfd() -> Fact:
    """Can writes to memory be trapped? Then a snapshot is taken while the guest runs on."""
    name = "userfaultfd"
    costs = "taking a snapshot pauses the guest for as long as its memory takes to write"
    try:
        descriptor, way = _open_userfaultfd()
    except OSError as refusal:
        device = Path("/dev/userfaultfd").exists()
        fix = "sudo setfacl -m u:$USER:rw /dev/userfaultfd" if device else "sudo sysctl -w vm.unprivileged_userfaultfd=1"
        fix = _DEBIANS_KERNEL if refusal.errno == errno.ENOSYS else fix
        return Fact(name, FactState.LIMITED, f"the kernel refuses it: {refusal.strerror}", costs, fix)
    try:
        # struct uffdio_api: api, features, ioctls
        fcntl.ioctl(descriptor, _UFFDIO_API, struct.pack("QQQ", _UFFD_API, _WRITE_PROTECT, 0))
    except OSError as refusal:
        return Fact(name, FactState.LIMITED, f"it cannot trap writes: {refusal.strerror}", costs, _DEBIANS_KERNEL)
    finally:
        os.close(descriptor)
    return Fact(name, FactState.OK, f"writes can be trapped, through {way}")


def _open_userfaultfd() -> tuple[int, str]:
    import ctypes  # most commands ask for other facts

    with contextlib.suppress(OSError):
        device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
        try:
            return fcntl.ioctl(device, _UFFD_NEW, os.O_CLOEXEC), "/dev/userfaultfd"
        finally:
            os.close(device)
    number = _SYS_USERFAULTFD.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    descriptor = ctypes.CDLL(None, use_errno=True).syscall(number, os.O_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return descriptor, "the system call"


# What a NAT network needs: a filter chain, address translation, and the state of connections.
_RULES: Final = b"""
table inet insula_probe {
    chain forward { type filter hook forward priority 0; ct state established accept; }
    chain nat { type nat hook postrouting priority 100; oifname "lo" masquerade; }
}
"""


def network_devices() -> list[Fact]:
    """Can taps, bridges and packet filters be made? Tried in network namespaces of their own, so nothing here changes."""
    seen = _make_devices() | {"nft": _make_table()}
    where = "" if os.geteuid() == 0 else " (in a namespace)"
    facts = []
    for name, costs, fix in (
        ("tap", "no networks among machines; NAT through passt works", "sudo modprobe tun"),
        ("bridge", "no networks among machines; NAT through passt works", "sudo modprobe bridge"),
        ("nft", "traffic between networks of machines cannot be filtered", "sudo apt-get install nftables"),
    ):
        obstacle = seen[name]
        limited = Fact(name, FactState.LIMITED, obstacle, costs, fix)
        facts.append(limited if obstacle else Fact(name, FactState.OK, f"one was made{where}"))
    return facts


def _make_devices() -> dict[str, str]:
    script = Path(__file__).with_name("network_probe.py")
    try:
        done = run([*_own_network(), sys.executable, "-I", os.fspath(script)], timeout=_PATIENCE)
    except (ChildFailed, HostLacks) as refusal:
        return dict.fromkeys(("tap", "bridge"), refusal.message)
    answers: dict[str, str] = json.loads(done.stdout)
    return answers


def _make_table() -> str:
    program = find_program("nft")
    if program is None:
        return "the program nft is not installed"
    try:
        run([*_own_network(), program, "-f", "-"], data=_RULES, timeout=_PATIENCE)
    except (ChildFailed, HostLacks) as refusal:
        return refusal.message
    return ""


def _own_network() -> list[str]:
    return ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]


def state_folder(folder: Path) -> Fact:
    """Can the state be kept in ``folder``, and is there room for it?"""
    name = "state folder"
    costs, fix = "machines have nowhere to be", "set INSULA_HOME to a folder you may write"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = folder / f".probe-{os.urandom(4).hex()}"
        probe.write_bytes(b"written")
        probe.unlink()
    except OSError as refusal:
        return Fact(name, FactState.MISSING, f"{folder}: {refusal.strerror}", costs, fix)
    free = free_bytes(folder)
    detail = f"{folder} has {format_size(free)} free"
    fix = "free some space, or set INSULA_HOME to a folder on another disk"
    if free < GIB:
        return Fact(name, FactState.MISSING, detail, "not even one image fits", fix)
    if free < 5 * GIB:
        return Fact(name, FactState.LIMITED, detail, "a few machines fit, no more", fix)
    return Fact(name, FactState.OK, detail)


def boot_id() -> str:
    """The kernel's name for this boot of the host; what was proved holds no longer than that."""
    return _text("/proc/sys/kernel/random/boot_id")


def _text(path: str | Path) -> str:
    """The content of a one-line file, or nothing."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


class Probe(msgspec.Struct, frozen=True):
    """A probe whose answer holds until the host boots again or one of ``files`` (programs by their names alone) changes."""

    name: str
    run: Callable[[], Fact | list[Fact]]
    files: tuple[str, ...] = ()

    def facts(self) -> list[Fact]:
        answer = self.run()
        return answer if isinstance(answer, list) else [answer]

    def rests_on(self) -> str:
        """Changes when who asks, or a file that matters, is another."""
        identity = f"{os.geteuid()} {sorted(os.getgroups())}"
        return " ".join([identity, *(_state_of(name) for name in self.files)])


def _state_of(name: str) -> str:
    path = name if name.startswith("/") else find_program(name)
    if path is None or not os.path.exists(path):
        return f"{name}:absent"
    status = os.stat(path)
    return f"{path}:{status.st_ino}:{status.st_mode:o}:{status.st_uid}:{status.st_gid}:{status.st_size}:{status.st_mtime_ns}"


HOST_PROBES: Final = (
    Probe("user namespaces", user_namespaces, ("unshare",)),
    Probe("id ranges", id_ranges, ("/etc/subuid", "/etc/subgid", "newuidmap")),
    Probe("cgroups", cgroups),
    Probe("userfaultfd", userfaultfd, ("/dev/userfaultfd",)),
    Probe("network devices", network_devices, ("unshare", "nft")),
)
