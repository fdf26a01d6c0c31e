"""What a test run left behind on this host.

A run is known by a token in the environment of all it starts and by the one folder that holds all its files. Other
programs on the same host, another run of these tests among them, are none of its business: a process counts only if it
carries the token or holds on to the folder; links, cgroups and shared memory count only if they bear Insula's name and were not
there when the run began. Tables of rules and named network namespaces count whatever they are called, and a switch of the
network (sysctl) if it was there before with another value. Those of a home (named by its key) count only if that home
is in the folder, those named by another process's pid only once that has ended; and while any home is joined to the host its
switches are not as they will be.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from insula.networks.naming import home_key

MARKER = "INSULA_TEST_RUN"
_DEVICES = [Path(f"/dev/{name}") for name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "net/tun", "kvm")]
_KEYED = re.compile(r"(?:^v|insula_|/insula/)([0-9a-f]{8})$")  # links, tables and cgroups of the host that belong to a home
_MADE_BY = re.compile(r"^ins[a-z]+([0-9]+)[a-z]?$")  # those that tests make beside Insula, and the pid of who made them
_PATIENCE = 30.0  # seconds; what is on its way out may finish


@dataclass(frozen=True)
class HostState:
    """Names on this host that Insula could have made outside its folder."""

    links: frozenset[str]
    tables: frozenset[str]
    cgroups: frozenset[str]
    shared_memory: frozenset[str]
    network_namespaces: frozenset[str]
    default_homes: frozenset[str]
    devices: frozenset[str]
    switches: frozenset[str]
    sysctls: frozenset[str]  # NAME=VALUE; none while any home is joined


def host_state() -> HostState:
    """What there is now."""
    return HostState(
        links=frozenset(name for name in _listing(Path("/sys/class/net")) if name.startswith("ins") or _KEYED.search(name)),
        tables=frozenset(nft_tables()),
        cgroups=frozenset(str(path) for path in Path("/sys/fs/cgroup").rglob("insula/*") if path.is_dir()),
        shared_memory=frozenset(name for name in _listing(Path("/dev/shm")) if "insula" in name),
        network_namespaces=frozenset(name for name in _listing(Path("/run/netns"))),
        default_homes=frozenset(str(path) for path in _default_homes() if path.exists()),
        # Bound into every jail and room: if one of them could change these, all programs of this host would suffer.
        switches=frozenset(_switches()),
        sysctls=frozenset() if _is_joined() else frozenset(f"{name}={value}" for name, value in sysctls().items()),
        devices=frozenset(f"{path} {path.stat().st_mode:o}" for path in _DEVICES if path.exists()),
    )


def left_behind(folder: Path, token: str, before: HostState | None) -> list[str]:
    """A line for each thing of the run that is still there, after a short wait for what is just ending.

    Without ``before`` the host itself is not looked at, but for the networks of homes in ``folder``: others are still at work.
    """
    deadline = time.monotonic() + _PATIENCE
    while found := list(_find(folder, token, before)):
        if time.monotonic() > deadline:
            return found
        time.sleep(0.1)  # between two looks at the condition
    return []


def _find(folder: Path, token: str, before: HostState | None) -> Iterator[str]:
    yield from threads()
    yield from _processes(folder, token)
    yield from _mounts(folder)
    yield from _sockets(folder)
    yield from new_names(folder, before, host_state())


def new_names(folder: Path, before: HostState | None, now: HostState) -> list[str]:
    """What is there now and was not before, but for the networks of homes that are not in ``folder``; see `left_behind`."""
    ours, found = {home_key(Path(place)) for place, below, _ in os.walk(folder) if {"fabric", "machines"} & {*below}}, []
    for field in fields(HostState):
        former = getattr(before, field.name) if before else frozenset()
        came = getattr(now, field.name) - former
        if field.name == "sysctls":
            known = {name.partition("=")[0] for name in former}
            came = {name for name in came if name.partition("=")[0] in known}
        for name in sorted(came):
            key = _KEYED.search(name)
            if key[1] in ours if key else before and not _is_in_use(name):
                found.append(f"{field.name.replace('_', ' ')}: {name}")
    return found


def _is_in_use(name: str) -> bool:
    """Whether it was made by another process, which still runs; by the end of a run all of its own have ended."""
    pid = _MADE_BY.search(name.rpartition(" ")[2])
    return pid is not None and int(pid[1]) != os.getpid() and Path("/proc", pid[1]).exists()


def threads() -> Iterator[str]:
    """Threads of a test that would keep Python from ending."""
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            yield f"thread: {thread.name}"


def _processes(folder: Path, token: str) -> Iterator[str]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").strip()
            if words and (why := _ours(entry, words, os.fsencode(folder), token)):
                yield f"process {entry.name}: {words.decode(errors='replace')[:200]} ({why})"
        except OSError:
            continue  # it ended while we looked, or is another user's


def _ours(entry: Path, words: bytes, folder: bytes, token: str) -> str | None:
    """Why a process belongs to the run, or None."""
    if f"{MARKER}={token}".encode() in (entry / "environ").read_bytes().split(b"\0"):
        return "carries the run's token"
    if folder in words:
        return "names the run's folder"
    if folder in (entry / "environ").read_bytes():
        return "has the run's folder in its environment"
    held = [entry / "cwd", entry / "root", *(entry / "fd").iterdir()]
    for link in held:
        try:
            if os.fsencode(link.readlink()).startswith(folder):
                return f"holds {link.name} in the run's folder"
        except OSError:
            continue
    return None


def _mounts(folder: Path) -> Iterator[str]:
    # Format: proc(5), mountinfo; the fifth field is the mount point, with octal escapes that our names never need.
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        point = line.split()[4]
        if point == str(folder) or point.startswith(f"{folder}/"):
            yield f"mount: {point}"


def _sockets(folder: Path) -> Iterator[str]:
    for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]:
        name = line.split()[-1]
        if str(folder) in name:
            yield f"socket: {name}"


def nft_tables() -> list[str]:
    if os.geteuid() != 0 or shutil.which("nft") is None:
        return []
    answer = subprocess.run(["nft", "-j", "list", "tables"], capture_output=True, check=False)
    if answer.returncode != 0:
        return []  # this kernel has no nftables, so nobody made a table
    tables = (item.get("table", {}) for item in json.loads(answer.stdout)["nftables"])
    return [f"{table['family']} {table['name']}" for table in tables if table]


def _is_joined() -> bool:
    return any(_KEYED.search(name) for name in _listing(Path("/sys/class/net")))


def _switches() -> list[str]:
    """What says that the host's switches are turned, though no network of any home is joined to it."""
    return [] if _is_joined() else [f"/run/insula/{name}" for name in _listing(Path("/run/insula"))]


def sysctls() -> dict[str, str]:
    """Switches of this network, those of each link too, by their names below /proc/sys/net."""
    root, found = Path("/proc/sys/net"), {}
    for pattern in ("ipv4/ip*", "ipv?/conf/*/*", "ipv?/icmp*", "bridge/*"):
        for path in root.glob(pattern):
            with contextlib.suppress(OSError):  # some can only be written, and links go
                found[str(path.relative_to(root))] = path.read_text().strip()
    return found


def _default_homes() -> list[Path]:
    """Where Insula keeps its state unless told otherwise: a test that forgot to say so would write there."""
    data = os.environ.get("XDG_DATA_HOME")
    return [Path("/var/lib/insula"), (Path(data) if data else Path.home() / ".local/share") / "insula"]


def _listing(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
