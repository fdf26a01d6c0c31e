"""A file system that forgets at a power cut what nobody fsynced, and remembers any part of it, in any order.

Every file is a map from blocks to values (a record is one block, a guest's memory two, a disk many), every folder a map from
names to inodes. Each change takes effect at once and waits in a log for its fsync; at a power cut a chooser says of each waiting
change whether it survives. Two promises of real file systems are kept: one rename is one change, and a folder has one name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Inode = int
Chooser = Callable[[int], bool]  # index of a waiting change -> does it survive


@dataclass(slots=True)
class Node:
    """A file or folder: what programs see, and what is on the disk for certain. A value is never changed, only replaced."""

    folder: bool
    now: dict[Any, Any] = field(default_factory=dict)
    durable: dict[Any, Any] = field(default_factory=dict)
    readonly: bool = False

    def copy(self) -> Node:
        return Node(self.folder, dict(self.now), dict(self.durable), self.readonly)


@dataclass(frozen=True, slots=True)
class Change:
    """One change that survives a power cut whole or not at all: (inode, key, value), where value None takes the key away."""

    parts: tuple[tuple[Inode, Any, Any], ...]


ROOT: Inode = 0


class Files:
    """The file system. Paths have no leading slash."""

    def __init__(self) -> None:
        self.nodes: list[Node] = [Node(folder=True)]
        self.log: list[Change] = []

    def copy(self) -> Files:
        twin = Files()
        twin.nodes = [node.copy() for node in self.nodes]
        twin.log = list(self.log)
        return twin

    # -- looking -------------------------------------------------------------------------------------------------------
    def find(self, path: str) -> Inode | None:
        inode: Inode = ROOT
        for part in path.split("/"):
            found = self.nodes[inode].now.get(part)
            if found is None:
                return None
            inode = found
        return inode

    def inode(self, path: str) -> Inode:
        inode = self.find(path)
        if inode is None:
            raise FileNotFoundError(path)
        return inode

    def exists(self, path: str) -> bool:
        return self.find(path) is not None

    def names(self, path: str) -> list[str]:
        inode = self.find(path)
        return [] if inode is None else sorted(self.nodes[inode].now)

    def content(self, inode: Inode) -> dict[Any, Any]:
        return self.nodes[inode].now

    def read(self, path: str) -> dict[Any, Any]:
        return self.nodes[self.inode(path)].now

    def walk(self, path: str) -> list[str]:
        """All paths below ``path``, folders too."""
        inode = self.find(path)
        return [] if inode is None else list(self._below(path, self.nodes[inode]))

    def _below(self, path: str, node: Node) -> Iterator[str]:
        if node.folder:
            for name, inode in node.now.items():
                yield f"{path}/{name}"
                yield from self._below(f"{path}/{name}", self.nodes[inode])

    # -- changing ------------------------------------------------------------------------------------------------------
    def mkdir(self, path: str) -> None:
        if not self.exists(path):
            self._make(path, Node(folder=True))

    def create(self, path: str, content: dict[Any, Any]) -> Inode:
        """A new file; its name and each block of its content are changes of their own."""
        inode = self._make(path, Node(folder=False))
        self.write(inode, content)
        return inode

    def write(self, inode: Inode, content: dict[Any, Any]) -> None:
        for key, value in content.items():
            self._change((inode, key, value))

    def link(self, source: str, target: str) -> None:
        folder, name = self._split(target)
        self._change((folder, name, self.inode(source)))

    def rename(self, source: str, target: str) -> None:
        inode, old, new = self.inode(source), self._split(source), self._split(target)
        self._change((*old, None), (*new, inode))

    def unlink(self, path: str) -> None:
        if self.exists(path):
            self._change((*self._split(path), None))

    def remove_tree(self, path: str) -> None:
        for inner in reversed(self.walk(path)):
            self.unlink(inner)
        self.unlink(path)

    def freeze(self, path: str) -> None:
        """chmod 0444; who has it open may go on writing."""
        self.nodes[self.inode(path)].readonly = True

    # -- what lasts ----------------------------------------------------------------------------------------------------
    def fsync(self, inode: Inode) -> None:
        """Make what was done to this file or folder last, with whatever earlier change of a name it builds upon."""
        wanted = {part[:2] for change in self.log for part in change.parts if part[0] == inode}
        kept: list[Change] = []
        done: list[Change] = []
        for change in reversed(self.log):
            if any(part[:2] in wanted for part in change.parts):
                wanted |= {part[:2] for part in change.parts}
                done.append(change)
            else:
                kept.append(change)
        for change in reversed(done):
            self._settle(change)
        self.log = kept[::-1]

    def cut_power(self, survives: Chooser) -> None:
        """Lose what is not on the disk, except the waiting changes that happen to have got there."""
        for index, change in enumerate(self.log):
            if survives(index):
                self._settle(change)
        self.log = []
        for node in self.nodes:
            node.now = dict(node.durable)

    def _make(self, path: str, node: Node) -> Inode:
        folder, name = self._split(path)
        self.nodes.append(node)
        self._change((folder, name, len(self.nodes) - 1))
        return len(self.nodes) - 1

    def _split(self, path: str) -> tuple[Inode, str]:
        folder, _, name = path.rpartition("/")
        return (self.inode(folder) if folder else ROOT), name

    def _change(self, *parts: tuple[Inode, Any, Any]) -> None:
        for inode, key, value in parts:
            _put(self.nodes[inode].now, key, value)
        self.log.append(Change(parts))

    def _settle(self, change: Change) -> None:
        for inode, key, value in change.parts:
            _put(self.nodes[inode].durable, key, value)


def _put(content: dict[Any, Any], key: Any, value: Any) -> None:
    if value is None:
        content.pop(key, None)
    else:
        content[key] = value
