"""The control groups of a home's machines: ``insula/HOME/MACHINE.TOKEN``, one for each QEMU, since a machine has two for a moment
when it is restored. Which one is the machine's stands in its run folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from insula.errors import HostLacks
from insula.host import cgroup_trees, cgroups
from insula.host.cgroup_trees import Tree
from insula.host.cgroups import Group
from insula.host.native import native_path
from insula.resources.shares import Setting, parent_weight
from insula.store import names
from insula.store.names import Home, home_key


class Place(NamedTuple):
    """Where the processes of a QEMU are to be: the name of its group, and descriptors to enter it by; neither where none can be
    had."""

    leaf: str = ""
    entrances: tuple[int, ...] = ()


NOWHERE: Final = Place()


@contextlib.contextmanager
def new_place(home: Home, machine_id: str, settings: Callable[[Group], Iterable[Setting]]) -> Iterator[Place]:
    """A new group for a QEMU of the machine, held to ``settings``. It stays if somebody entered it by the exit.

    Raises HostLacks (``no_group``, ``limit_refused``).
    """
    trees = cgroup_trees.usable_trees()
    if not trees:
        yield NOWHERE
        return
    parent, leaf = home_key(home.root), f"{machine_id}.{os.urandom(4).hex()}"
    with cgroups.made(parent, leaf, trees) as group:
        try:
            write_all(group, settings(group))
            balance(parent, trees)
            with _entrances(group) as descriptors:
                yield Place(leaf, descriptors)
        finally:
            cgroups.remove(group)  # if nobody came


@contextlib.contextmanager
def _entrances(group: Group) -> Iterator[tuple[int, ...]]:
    with contextlib.ExitStack() as opened:
        try:
            descriptors = opened.enter_context(cgroups.entrances(group))
        except OSError as cause:
            raise HostLacks(
                f"the machine's control group is gone: {cause.strerror}", code="no_group", hint="somebody removed it; try again"
            ) from cause
        yield descriptors


def group_words(entrances: Iterable[int]) -> list[str]:
    """Pure: how a half of the keeper is told to enter groups (native/keeper/group.c)."""
    return [word for entrance in entrances for word in ("--group", str(entrance))]


def entering(entrances: Sequence[int], argv: Sequence[str]) -> list[str]:
    """The words that run ``argv`` in the groups that have these entrances, which it does not get."""
    return [str(native_path("insula-keeper")), "enter", *group_words(entrances), "--", *argv] if entrances else [*argv]


def write_all(group: Group, settings: Iterable[Setting]) -> None:
    """Hold the group to ``settings``. What cannot be is passed over unless somebody wished for it: then it is as it was before.

    Raises HostLacks (``limit_refused``).
    """
    done: list[tuple[Setting, str]] = []
    for setting in settings:
        former = group.read(setting.controller, setting.file)
        try:
            group.write(setting.controller, setting.file, setting.value)
        except OSError as cause:
            if not setting.wish:
                continue
            for earlier, value in reversed(done):
                with contextlib.suppress(OSError):
                    group.write(earlier.controller, earlier.file, value)
            raise HostLacks(
                f"the kernel refuses {setting.value.strip() or 'no limit'} for {setting.file}: {cause.strerror}",
                code="limit_refused",
                hint="see what this host lets us do: insula doctor",
            ) from cause
        if former is not None:
            done.append((setting, former.strip() or "\n"))


def balance(parent: str, trees: Sequence[Tree]) -> None:
    """Have the groups above the machines' weigh as much as so many ordinary processes of this host."""
    for tree in trees:
        if "cpu" in tree.controllers:
            cgroups.weigh(tree, (parent,), *parent_weight(cgroups.count(tree, parent), tree.version))
            machines = sum(cgroups.count(tree, home) for home in cgroups.parents(tree))
            cgroups.weigh(tree, (), *parent_weight(machines, tree.version))


def group_of(home: Home, run: Path) -> Group | None:
    """The group of the machine that runs in ``run``; None when it was given none, or somebody removed it."""
    leaf = leaf_of(run)
    return cgroups.find(home_key(home.root), leaf, cgroup_trees.usable_trees()) if leaf else None


def leaf_of(run: Path) -> str:
    """The name of the group of the machine that runs in ``run``; empty where it was given none."""
    try:
        return (run / names.GROUP).read_text().strip()
    except OSError:
        return ""


@contextlib.contextmanager
def mended(home: Home, run: Path, pids: Iterable[int]) -> Iterator[Group | None]:
    """The group of a running machine, made anew if somebody removed it, with its processes ``pids`` in it; None where there can
    be none. Raises HostLacks (``no_group``)."""
    leaf, trees = leaf_of(run), cgroup_trees.usable_trees()
    if not leaf or not trees:
        yield None
        return
    with cgroups.made(home_key(home.root), leaf, trees) as group:
        strayed = {pid for there in group.members().values() for pid in set(pids) - there}
        if strayed:
            try:
                group.take(sorted(strayed))
            except OSError as cause:
                raise HostLacks(
                    f"its processes cannot be put into their control group: {cause.strerror}",
                    code="no_group",
                    hint="see what this host lets us do: insula doctor",
                ) from cause
            balance(home_key(home.root), trees)
        yield group


def drop(home: Home, machine_id: str, keep: str = "", timeout: float = 0.0) -> None:
    """Remove the groups of a machine that has ended, but for the one called ``keep``."""
    parent, trees = home_key(home.root), cgroup_trees.usable_trees()
    gone = False
    for leaf in cgroups.leaves(parent, trees):
        group = cgroups.find(parent, leaf, trees) if leaf.startswith(f"{machine_id}.") and leaf != keep else None
        gone |= group is not None and cgroups.remove(group, timeout)
    if gone:
        balance(parent, trees)


def sweep(home: Home) -> None:
    """Remove the groups in which nobody is any more."""
    parent, trees = home_key(home.root), cgroup_trees.usable_trees()
    if cgroups.sweep(parent, trees):
        balance(parent, trees)


def was_out_of_memory(group: Group) -> bool:
    """Whether the kernel ended a process of the group because of the fence around its memory."""
    version = group.versions().get("memory")
    text = group.read("memory", "memory.oom_control" if version == 1 else "memory.events") or ""
    counts = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
    return counts.get("oom_kill", "0").strip() not in ("", "0")
