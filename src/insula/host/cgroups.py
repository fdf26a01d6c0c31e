"""Control groups: made, entered, written, read, emptied and removed. Nobody else touches them; where they can be had is
cgroup_trees.py's.

A group of ours has the same path in every tree it could be made in, below a folder called ``insula``. Its processes enter it
before they become what is to be held (native/keeper/group.c). Formats: cgroups(7), and the kernel's admin-guide/cgroup-v1 and
cgroup-v2.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from insula.host.cgroup_trees import CONTROLLERS, FORMER, PROCESSES, Tree, find_trees, read_file

TOP: Final = "insula"
_SUBTREE: Final = "cgroup.subtree_control"
_TRIES: Final = 3
_WARM_PAUSE: Final = 0.005  # seconds; the kernel's moment is rarely shorter
_WARM_TIMES: Final = 200
_MOMENT: Final = 5  # milliseconds


class Group(msgspec.Struct, frozen=True):
    """One group, ``insula/PARENT/LEAF``, in the trees it is in."""

    parent: str
    leaf: str
    trees: tuple[Tree, ...]

    def folder(self, tree: Tree) -> Path:
        return tree.base / TOP / self.parent / self.leaf

    def where(self, controller: str) -> Path | None:
        """Its folder in the tree that has ``controller``; None where that governs it not. ``''``: in the one of version 2."""
        for tree in self.trees:
            folder = self.folder(tree)
            if tree.version == 2 and not controller:
                return folder
            if controller in tree.controllers and (
                tree.version == 1 or controller in read_file(folder / "cgroup.controllers").split()
            ):
                return folder
        return None

    def versions(self) -> dict[str, int]:
        """The controllers that govern it, and of which version each is."""
        found: dict[str, int] = {}
        for tree in self.trees:
            names = tree.controllers if tree.version == 1 else read_file(self.folder(tree) / "cgroup.controllers").split()
            found |= dict.fromkeys(names, tree.version)
        return found

    def read(self, controller: str, file: str) -> str | None:
        """What ``file`` of it says; None when there is none."""
        folder = self.where(controller)
        try:
            return (folder / file).read_text() if folder is not None else None
        except OSError:
            return None

    def read_above(self, controller: str, file: str) -> str:
        """What ``file`` of the group above says; nothing when there is none."""
        folder = self.where(controller)
        return read_file(folder.parent / file).strip() if folder is not None else ""

    def write(self, controller: str, file: str, value: str) -> None:
        """Raises OSError."""
        folder = self.where(controller)
        if folder is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file)
        _write(folder / file, value)

    def members(self) -> dict[Tree, set[int]]:
        """The pids in it, tree by tree."""
        return {tree: {int(pid) for pid in read_file(self.folder(tree) / PROCESSES).split()} for tree in self.trees}

    def take(self, pids: Iterable[int]) -> None:
        """Move processes, with all their threads, into it; those that have ended are passed over. Raises OSError."""
        for tree in self.trees:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    _write(self.folder(tree) / PROCESSES, str(pid))

    def is_whole(self) -> bool:
        """Whether it is still there in all its trees."""
        return all(self.folder(tree).is_dir() for tree in self.trees)


@contextlib.contextmanager
def made(parent: str, leaf: str, trees: Sequence[Tree]) -> Iterator[Group]:
    """A new group, in those of ``trees`` where one can be had. Until the exit nobody sweeps it though nobody is in it."""
    with contextlib.ExitStack() as held:
        yield Group(parent, leaf, tuple(tree for tree in trees if _make(tree, parent, leaf, held)))


def _make(tree: Tree, parent: str, leaf: str, held: contextlib.ExitStack) -> bool:
    folder = tree.base / TOP / parent / leaf
    for _ in range(_TRIES):  # somebody may remove what is empty just now
        try:
            for above in (tree.base / TOP, tree.base / TOP / parent):
                with contextlib.suppress(FileExistsError):
                    above.mkdir()
                _prepare(tree, above)
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            held.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            _prepare(tree, folder)
            if folder.is_dir():
                return True
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return False


def _prepare(tree: Tree, folder: Path) -> None:
    """What a new group needs before processes or groups can be in it: version 1's cpuset begins empty, and of version 2 each
    controller must be passed on."""
    if tree.version == 2:
        _pass_on(folder.parent)
    elif "cpuset" in tree.controllers:
        for file in ("cpuset.mems", "cpuset.cpus"):
            if not read_file(folder / file).strip():
                _write(folder / file, read_file(folder.parent / file).strip())


def _pass_on(folder: Path) -> None:
    there = set(read_file(folder / "cgroup.controllers").split()) & set(CONTROLLERS)
    missing = there - set(read_file(folder / _SUBTREE).split())
    # A group with processes in it can have no governed ones below it. The tree's root can; it has no type.
    if missing and (folder / "cgroup.type").exists() and not _put_aside(folder):
        return
    for controller in sorted(missing):
        with contextlib.suppress(OSError):
            _write(folder / _SUBTREE, f"+{controller}")


def _put_aside(folder: Path) -> bool:
    """Move the processes of a delegated group, if it has any, into one below it. Whether it has none now."""
    aside, pids = folder / FORMER, read_file(folder / PROCESSES).split()
    try:
        if pids:
            aside.mkdir(exist_ok=True)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                _write(aside / PROCESSES, pid)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def entrances(group: Group) -> Iterator[tuple[int, ...]]:
    """Descriptors by which a process enters the group, one for each tree: see native/keeper/group.c."""
    with contextlib.ExitStack() as opened:
        descriptors = []
        for tree in group.trees:
            descriptor = os.open(group.folder(tree) / PROCESSES, os.O_WRONLY | os.O_CLOEXEC)
            opened.callback(os.close, descriptor)
            descriptors.append(descriptor)
        yield tuple(descriptors)


@contextlib.contextmanager
def warmed() -> Iterator[None]:
    """Within it a process that enters a group does not wait. The kernel makes the first after a while wait until all CPUs have
    been through a quiet moment, some 10 ms; for about as long again everybody passes at once. So somebody enters where it is
    already, beside what else is to be done."""
    descriptor, over = _own_processes(), threading.Event()

    def enter() -> None:
        for _ in range(_WARM_TIMES):
            with contextlib.suppress(OSError):
                os.write(descriptor, b"0")
            if over.wait(_WARM_PAUSE):
                return

    if descriptor < 0:
        yield
        return
    thread = threading.Thread(target=enter)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        os.close(descriptor)


def _own_processes() -> int:
    """An open `cgroup.procs` of a group that we are in and may enter; -1 where there is none."""
    trees = find_trees(root=True)
    for line in read_file(Path("/proc/self/cgroup")).splitlines():
        number, words, place = line.split(":", 2)
        for tree in trees:
            if tree.version == 2 if number == "0" else tree.controllers & {*words.split(",")}:
                with contextlib.suppress(OSError):
                    return os.open(tree.base / place.lstrip("/") / PROCESSES, os.O_WRONLY | os.O_CLOEXEC)
    return -1


def find(parent: str, leaf: str, trees: Sequence[Tree]) -> Group | None:
    """The group, if it is in any tree."""
    group = Group(parent, leaf, tuple(tree for tree in trees if (tree.base / TOP / parent / leaf).is_dir()))
    return group if group.trees else None


def leaves(parent: str, trees: Sequence[Tree]) -> set[str]:
    """The groups there are below ``parent``."""
    found = set()
    for tree in trees:
        with contextlib.suppress(OSError), os.scandir(tree.base / TOP / parent) as entries:
            found |= {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
    return found


def count(tree: Tree, *parts: str) -> int:
    """How many groups are below ``insula/PARTS``: folders of cgroups count what is in them as others do."""
    try:
        return tree.base.joinpath(TOP, *parts).stat().st_nlink - 2
    except OSError:
        return 0


def parents(tree: Tree) -> list[str]:
    """The folders below ``insula``."""
    with contextlib.suppress(OSError), os.scandir(tree.base / TOP) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    return []


def weigh(tree: Tree, parts: Sequence[str], file: str, value: str) -> None:
    """Write a file of ``insula/PARTS``, if it is there and takes it."""
    with contextlib.suppress(OSError):
        _write(tree.base.joinpath(TOP, *parts, file), value)


def remove(group: Group, timeout: float = 0.0) -> bool:
    """Remove a group once nobody is in it, for which ``timeout`` seconds are granted; and its parents, if they are empty. Whether
    it is gone."""
    deadline = time.monotonic() + timeout
    gone = [_remove(group.folder(tree), deadline) for tree in group.trees]
    _remove_empty(group.parent, group.trees)
    return all(gone)


def _remove_empty(parent: str, trees: Sequence[Tree]) -> None:
    for tree in trees:
        with contextlib.suppress(OSError):
            (tree.base / TOP / parent).rmdir()
            (tree.base / TOP).rmdir()


def sweep(parent: str, trees: Sequence[Tree]) -> list[str]:
    """Remove the groups below ``parent`` in which nobody is and that nobody makes just now. Returns their names."""
    gone = [leaf for leaf in sorted(leaves(parent, trees)) if all(_sweep(tree.base / TOP / parent / leaf) for tree in trees)]
    if gone:
        _remove_empty(parent, trees)
    return gone


def _sweep(folder: Path) -> bool:
    """Whether it is gone; whoever makes it holds its lock in the first tree before it is made in the next."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.rmdir()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _remove(folder: Path, deadline: float) -> bool:
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return True
        except OSError as refusal:
            if refusal.errno != errno.EBUSY or not _wait_for_one(folder, deadline):
                return False
        else:
            return True


def _wait_for_one(folder: Path, deadline: float) -> bool:
    """Wait until one of the processes in it ends, or a moment if none is seen: the kernel tells nobody when it is done with the
    last. Whether it is worth looking again."""
    if time.monotonic() >= deadline:
        return False
    for pid in read_file(folder / PROCESSES).split():
        with contextlib.suppress(OSError):
            descriptor = os.pidfd_open(int(pid))
            try:
                poller = select.poll()
                poller.register(descriptor, select.POLLIN)
                return bool(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))
            finally:
                os.close(descriptor)
    select.poll().poll(_MOMENT)
    return True


def _write(path: Path, value: str) -> None:
    """One write(2), which is how these files want it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)
