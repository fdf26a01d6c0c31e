"""The layers of a jail as the kernel tells them of a process that is in it: nothing is taken from what was asked for.

Sources: proc(5), namespaces(7), capabilities(7), seccomp(2).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from insula.errors import HostLacks
from insula.isolation.filters import has_filter
from insula.model.security import Layer, LayerState
from insula.model.spec import MOST_DISK

_PROC: Final = Path("/proc")
_NAMESPACES: Final = {
    "mnt": "mount", "pid": "process", "net": "network", "ipc": "ipc", "uts": "host name", "cgroup": "cgroup", "user": "user",
}  # fmt: skip
_FILTERED: Final = "2"  # SECCOMP_MODE_FILTER
_BOUNDED: Final = {"core file size": 0, "locked memory": 0, "open files": 1024, "processes": 512, "file size": 2 * MOST_DISK}
_CAPABILITIES: Final = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def layers_of(pid: int, proc: Path = _PROC) -> list[Layer]:
    """What holds of the jail of process ``pid``, from outside in.

    Raises HostLacks (``unseen``) when the kernel shows it to nobody like us, or the process has ended.
    """
    looks: tuple[Callable[[Path, Path], Layer], ...] = (
        _user, _limits, _namespaces, _root, _network, _capabilities, _privileges, _calls, _label,
    )  # fmt: skip
    try:
        return [look(proc / str(pid), proc / "self") for look in looks]
    except OSError as cause:
        raise HostLacks(
            f"the jail of process {pid} cannot be looked at: {cause.strerror}",
            code="unseen",
            hint="look again as who started the machine, while it runs",
        ) from None


def _status(process: Path) -> dict[str, str]:
    lines = (line.partition(":") for line in (process / "status").read_text(errors="replace").splitlines())
    return {key: value.strip() for key, _, value in lines}


def _verdict(name: str, holds: bool, detail: str) -> Layer:
    return Layer(name, LayerState.HOLDS if holds else LayerState.BROKEN, detail)


def _user(process: Path, ours: Path) -> Layer:
    uids = set(_status(process)["Uid"].split())
    caller = _status(ours)["Uid"].split()[1]
    if uids == {caller} and caller != "0":
        return Layer("own user", LayerState.ABSENT, f"it is user {caller}, who started it: root's machines have one of their own")
    return _verdict("own user", "0" not in uids and caller not in uids, f"user {', '.join(sorted(uids))}")


def _limits(process: Path, _ours: Path) -> Layer:
    """Hard limits; the columns are as wide as proc(5)'s example has them."""
    found = {}
    for line in (process / "limits").read_text().splitlines()[1:]:
        name, hard = line[:26].removeprefix("Max ").strip(), line[47:68].strip()
        found[name] = math.inf if hard == "unlimited" else int(hard)
    beyond = [name for name, most in _BOUNDED.items() if found.get(name, math.inf) > most]
    fine = f"no core files, no locked memory, {_BOUNDED['open files']} files, {_BOUNDED['processes']} threads, bounded files"
    return _verdict("limits", not beyond, f"not bounded: {', '.join(beyond)}" if beyond else fine)


def _namespaces(process: Path, ours: Path) -> Layer:
    shared = [word for key, word in _NAMESPACES.items() if os.readlink(process / "ns" / key) == os.readlink(ours / "ns" / key)]
    own = [word for word in _NAMESPACES.values() if word not in shared]
    return _verdict("namespaces", not shared, f"shared with the host: {', '.join(shared)}" if shared else ", ".join(own))


def _root(process: Path, _ours: Path) -> Layer:
    """Of mounts on one place the last is what is seen. A device node is written to, and no file can be made in one."""
    mounts = [line.split() for line in (process / "mountinfo").read_text(errors="replace").splitlines()]
    seen = {words[4]: (words[3], words[5].split(",")) for words in mounts}
    writable = [place for place, (source, options) in seen.items() if "ro" not in options and not _is_device(place, source)]
    detail = f"writable: {', '.join(writable)}" if writable else "all it sees; it can make no file"
    return _verdict("read-only root", bool(seen) and not writable, detail)


def _is_device(place: str, source: str) -> bool:
    return place.startswith("/dev/") and source != "/"


def _network(process: Path, _ours: Path) -> Layer:
    lines = (process / "net" / "dev").read_text().splitlines()[2:]
    links = [line.partition(":")[0].strip() for line in lines]
    more = [link for link in links if link != "lo"]
    return _verdict("no network", not more, f"it has {', '.join(more)}" if more else "frames pass by descriptors handed in")


def _capabilities(process: Path, _ours: Path) -> Layer:
    status = _status(process)
    held = [key for key in _CAPABILITIES if int(status[key], 16)]
    if held == ["CapBnd"] and status["NoNewPrivs"] == "1":
        return _verdict("no capabilities", True, "it has none, and no program can give it one")
    return _verdict("no capabilities", not held, f"some in {', '.join(held)}" if held else "none, and none to be had")


def _privileges(process: Path, _ours: Path) -> Layer:
    holds = _status(process)["NoNewPrivs"] == "1"
    return _verdict("no new privileges", holds, "no program gives it more" if holds else "a program may give it more")


def _calls(process: Path, _ours: Path) -> Layer:
    """One filter is QEMU's own (``-sandbox``), which says what is forbidden; ours says what is allowed."""
    status = _status(process)
    filters = int(status.get("Seccomp_filters", "1")) if status["Seccomp"] == _FILTERED else 0
    if filters > 1:
        return Layer("system calls", LayerState.HOLDS, "a list of what is allowed, and QEMU's own of what is not")
    if filters and not has_filter("machine"):
        return Layer(
            "system calls", LayerState.ABSENT, "QEMU's own list alone: there is none of what is allowed on this architecture"
        )
    return Layer("system calls", LayerState.BROKEN, f"{filters} filters, where there are to be two")


def _label(process: Path, _ours: Path) -> Layer:
    try:
        label = (process / "attr" / "current").read_text(errors="replace").strip("\0\n ")
    except OSError:
        label = ""
    if label and not label.startswith("unconfined"):
        return Layer("AppArmor or SELinux", LayerState.HOLDS, label)
    why = f"the kernel's label is {label}; to have one: insula doctor" if label else "this host has neither"
    return Layer("AppArmor or SELinux", LayerState.ABSENT, why)
