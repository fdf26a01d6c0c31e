"""Control groups: the trees of them that a host has, and where in each we may make some.

Of version 1 there is a tree for each controller or few; of version 2 one for all; a hybrid has both, the second without
controllers (it still tells of pressure). Formats: cgroups(7), proc(5).

Root makes groups at the top of each tree, and not below its own: a machine outlives the session that started it. Others can make
them where a tree was delegated to them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

FORMER: Final = "insula-callers"  # version 2: where those go who were in a group that is to have groups below it
CONTROLLERS: Final = ("cpu", "cpuacct", "cpuset", "memory", "blkio", "io", "pids")
PROCESSES: Final = "cgroup.procs"

Kind = Literal["v1", "v2", "hybrid", "none"]


class Tree(msgspec.Struct, frozen=True):
    """One tree: its version (1 or 2), the controllers it has, and the folder in it below which we may make groups."""

    version: int
    controllers: frozenset[str]
    base: Path


def kind_of(trees: Sequence[Tree]) -> Kind:
    """What kind of host has these trees."""
    versions = {tree.version for tree in trees}
    if versions == {1, 2}:
        return "hybrid"
    return "none" if not versions else "v1" if versions == {1} else "v2"


def find_trees(proc: Path = Path("/proc/self"), *, root: bool | None = None) -> list[Tree]:
    """All trees that are mounted here; ``root``: whether for root's groups (None: for those of who asks)."""
    try:
        mounts, groups = (proc / "mountinfo").read_text(errors="replace"), (proc / "cgroup").read_text(errors="replace")
    except OSError:
        return []
    return [
        Tree(
            version, names if version == 1 else frozenset(read_file(base / "cgroup.controllers").split()) & set(CONTROLLERS), base
        )
        for version, names, base in parse_trees(mounts, groups, root=os.geteuid() == 0 if root is None else root)
    ]


def parse_trees(mounts: str, groups: str, *, root: bool) -> list[tuple[int, frozenset[str], Path]]:
    """Pure: version, controllers (of version 1) and base of each tree, from proc(5)'s mountinfo and cgroup."""
    own = {}
    for line in groups.splitlines():
        number, words, path = line.split(":", 2)
        own[frozenset[str]() if number == "0" else frozenset(words.split(","))] = path
    found: dict[frozenset[str], tuple[int, frozenset[str], Path]] = {}
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        (_, _, _, top, point, *_), (kind, _, options) = before.split(), after.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        names = frozenset(options.split(",")) & set(CONTROLLERS) if kind == "cgroup" else frozenset[str]()
        if kind == "cgroup" and not names:
            continue
        base = Path(_unescaped(point))
        if not root:
            place = next((path for key, path in own.items() if names <= key and (names or not key)), "/")
            base /= _parent(place.removeprefix(top.rstrip("/"))).lstrip("/")
        found.setdefault(names, (1 if names else 2, names, base))
    return list(found.values())


def _parent(place: str) -> str:
    """Where groups go of a caller who was put aside for them before."""
    return place.removesuffix(f"/{FORMER}")


def _unescaped(text: str) -> str:
    for escape, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(escape, character)
    return text


def is_usable(tree: Tree) -> bool:
    """Whether we may make groups in it, as far as its permissions say."""
    return os.access(tree.base, os.W_OK | os.X_OK) and os.access(tree.base / PROCESSES, os.W_OK)


def usable_trees() -> list[Tree]:
    """Those of `find_trees` in which we may make groups."""
    return [tree for tree in find_trees() if is_usable(tree)]


def read_file(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
