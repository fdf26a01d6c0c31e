"""CPUs of this host that one machine has for itself: a file per machine that runs so, below ``host/cores`` of the home.

What a file says counts for as long as the machine has a control group; whoever makes a group leaves those CPUs out of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from insula.errors import InsulaError
from insula.host import cgroup_trees, cgroups
from insula.host.files import write_atomic
from insula.model.limits import format_pin, parse_pin
from insula.store import names
from insula.store.names import Home, home_key


def taken(home: Home, machine_id: str) -> dict[int, str]:
    """The CPUs that other machines have for themselves, and the id of whose each is."""
    found = dict[int, str]()
    for other in _noted(home) - {machine_id} - stale(home):
        found |= dict.fromkeys(own(home, other), other)
    return found


def stale(home: Home) -> set[str]:
    """The machines of which a file is there that counts no more."""
    noted = _noted(home)
    leaves = cgroups.leaves(home_key(home.root), cgroup_trees.usable_trees()) if noted else set[str]()
    return noted - {leaf.partition(".")[0] for leaf in leaves}


def _noted(home: Home) -> set[str]:
    try:
        return {path.name for path in _folder(home).iterdir() if not path.name.startswith(".")}
    except FileNotFoundError:
        return set()


def own(home: Home, machine_id: str) -> tuple[int, ...]:
    """The CPUs this machine has for itself."""
    try:
        return parse_pin((_folder(home) / machine_id).read_text().strip())
    except (OSError, InsulaError):
        return ()


def keep(home: Home, machine_id: str, cpus: Iterable[int]) -> None:
    """Have it have these for itself, or none."""
    path, kept = _folder(home) / machine_id, tuple(sorted(cpus))
    if kept:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomic(path, f"{format_pin(kept)}\n".encode())
    else:
        path.unlink(missing_ok=True)


def _folder(home: Home) -> Path:
    return home.host / names.CORES
