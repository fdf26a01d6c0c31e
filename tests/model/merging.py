"""Merging layers: docs/snapshots.md, "Deleting and merging". The first half is done without the machine's lock, so that other
verbs come in between; a QEMU that runs takes the merged layer in, which it knows by numbers of its own."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from tests.model.steps import Step, Verb, cleared, folder_of, fsynced, noted, record_steps, sweep_step
from tests.model.world import Disk, Record, Violation, World


class Merge:
    """The layers of one disk from the place ``first`` on become one; the topmost stays."""

    def __init__(self, world: World, machine: str, first: int) -> None:
        self.world, self.machine, self.folder, self.first = world, machine, folder_of(machine), first
        record = world.record(self.folder)
        disk = record.disks[0]
        token = world.count()
        self.staged = f"machines/.new-{token}"
        self.expected = disk.layers[:-1]
        self.layer = f"layers/{disk.name}-m{token}"
        self.after: Record | None = None  # None: it is left

    def before_lock(self) -> list[Step]:
        files, staged = self.world.files, self.staged

        def write() -> None:
            content: dict[int, int] = {}
            for number in range(self.first, len(self.expected)):
                content |= files.read(f"{staged}/{number}")
            files.create(f"{staged}/merged", content)

        links = [partial(files.link, f"{self.folder}/{path}", f"{staged}/{n}") for n, path in enumerate(self.expected)]
        return [
            Step("merge: folder made", lambda: files.mkdir(staged)),
            *(Step("merge: layer linked aside", link) for link in links),
            Step("merged file written", write),
            fsynced(self.world, "merged file fsynced", f"{staged}/merged"),
        ]

    def with_lock(self) -> list[Step]:
        world, files, layer = self.world, self.world.files, f"{self.folder}/{self.layer}"

        def freeze() -> None:
            files.freeze(layer)
            world.frozen[files.inode(layer)] = dict(files.read(layer))

        steps = [
            noted(world, self.folder, "merge"),
            Step("merged layer linked", lambda: files.link(f"{self.staged}/merged", layer)),
            fsynced(world, "merged layer's folder fsynced", f"{self.folder}/layers"),
            Step("merged layer read-only", freeze),
            Step("QEMU takes it in", self._take_in),
            *record_steps(world, self.folder, self._wanted),
            sweep_step(world, self.folder),
            cleared(world, self.folder),
        ]
        return [
            Step("is the chain the same", self._look),
            *(Step(step.name, partial(self._unless_left, step)) for step in steps),
            Step("merge: folder removed", lambda: files.remove_tree(self.staged)),
        ]

    def _unless_left(self, step: Step) -> None:
        if self.after is not None:
            step.do()

    def _wanted(self) -> Record:
        assert self.after is not None
        return self.after

    def _look(self) -> None:
        if not self.world.files.exists(self.folder):
            return  # the machine was deleted meanwhile
        record = self.world.record(self.folder)
        if not is_as_expected(record.disks[0], self.expected) or self.world.files.exists(f"{self.folder}/suspended"):
            return
        merged = with_merged(record.disks[0], self.first, len(self.expected), self.layer)
        self.after = replace(record, disks=(merged, *record.disks[1:]))

    def _take_in(self) -> None:
        qemu = self.world.qemu(self.folder)
        if qemu is None:
            return
        disk = self._wanted().disks[0]
        place = disk.layers.index(self.layer)
        below, above = node(disk, place - 1), node(disk, place + 1)
        nodes, chain = qemu.nodes[disk.name], qemu.chains[disk.name]
        if not {below, above} <= {None, *nodes}:
            raise Violation(f"QEMU of {self.machine} has {nodes}, so nothing can be put between {below} and {above}")
        low, high = (nodes.index(below) + 1 if below is not None else 0), nodes.index(above)
        merged = self.world.open(self.folder, self.layer)
        replaced: dict[int, int] = {}
        for inode in chain[low:high]:
            replaced |= self.world.files.content(inode)
        if replaced != self.world.files.content(merged):
            raise Violation(f"QEMU of {self.machine} takes in what does not mean the same as {nodes[low:high]}")
        qemu.chains = qemu.chains | {disk.name: (*chain[:low], merged, *chain[high:])}
        qemu.nodes = qemu.nodes | {disk.name: (*nodes[:low], self.layer, *nodes[high:])}


def is_as_expected(disk: Disk, expected: tuple[str, ...]) -> bool:
    return disk.layers[: len(expected)] == expected and len(disk.layers) > len(expected)


def with_merged(disk: Disk, first: int, last: int, layer: str) -> Disk:
    known = dict(disk.runs)
    fewer = last - first - 1 + sum(known.get(path, 0) for path in disk.layers[first:last])
    layers = (*disk.layers[:first], layer, *disk.layers[last:])
    return replace(disk, layers=layers, runs=tuple((path, n) for path, n in [*disk.runs, (layer, fewer)] if path in layers))


def node(disk: Disk, place: int) -> int | str | None:
    """By what QEMU knows the layer at this place."""
    if place < 0:
        return None
    return disk.layers[place] if disk.layers[place] in dict(disk.runs) else disk.number(place)


def merge(world: World, machine: str, first: int = 1, between: Verb | None = None) -> Verb:
    """Merge the layers of a machine's first disk; ``between``: what another command does before the merge has the lock."""
    work = Merge(world, machine, first)
    if between is None:
        return Verb("merge", machine, [*work.before_lock(), *work.with_lock()])
    steps = [*work.before_lock(), *between.steps, *work.with_lock()]
    return Verb(f"merge and {between.name}", machine, steps, between.begin, between.done)
