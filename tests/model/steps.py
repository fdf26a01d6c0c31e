"""What verbs are made of: named single steps, so that a test can stop after any of them, and put them in a wrong order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tests.model.world import JOURNAL, RECORD, Disk, Manifest, Record, World


@dataclass(frozen=True)
class Step:
    name: str
    do: Callable[[], object]


@dataclass
class Verb:
    """Steps of one verb on one machine; ``begin`` and ``done`` tell the world what may, and then must, be there."""

    name: str
    machine: str
    steps: list[Step]
    begin: Callable[[], object] = lambda: None
    done: Callable[[], object] = lambda: None

    def run(self) -> None:
        self.begin()
        for step in self.steps:
            step.do()
        self.finish()

    def finish(self) -> None:
        """Success: nobody is left who could die."""
        self.done()


def folder_of(machine: str) -> str:
    return f"machines/{machine}"


def fsynced(world: World, name: str, path: str) -> Step:
    return Step(name, lambda: world.files.fsync(world.files.inode(path)))


def atomic(world: World, label: str, path: str, value: Callable[[], Any]) -> list[Step]:
    """The four steps of `write_atomic`."""
    folder, _, name = path.rpartition("/")
    aside = f"{folder}/.{name}.new"

    def write() -> None:
        world.files.create(aside, {"json": value()})

    return [
        Step(f"{label} written aside", write),
        Step(f"{label} fsynced", lambda: _fsync_either(world, aside, path)),
        Step(f"{label} renamed", lambda: world.files.rename(aside, path)),
        fsynced(world, f"{label} in its folder", folder),
    ]


def _fsync_either(world: World, aside: str, path: str) -> None:
    """Also when a test has the rename before it."""
    inode = world.files.find(aside)
    world.files.fsync(world.files.inode(path) if inode is None else inode)


def record_steps(world: World, folder: str, value: Callable[[], Record]) -> list[Step]:
    return atomic(world, "record", f"{folder}/{RECORD}", value)


def note(world: World, folder: str, verb: str, step: str) -> None:
    """`journal.note`: durable."""
    aside = f"{folder}/.{JOURNAL}.new"
    world.files.fsync(world.files.create(aside, {"json": (verb, step)}))
    world.files.rename(aside, f"{folder}/{JOURNAL}")
    world.files.fsync(world.files.inode(folder))


def noted(world: World, folder: str, verb: str, step: str = "") -> Step:
    return Step(f"journal: {verb} {step}".strip(), lambda: note(world, folder, verb, step))


def cleared(world: World, folder: str) -> Step:
    """`journal.clear`, which is not fsynced: a power cut may bring the entry back."""
    return Step("journal cleared", lambda: world.files.unlink(f"{folder}/{JOURNAL}"))


def named_files(world: World, folder: str) -> tuple[set[str], set[str]]:
    """Paths (in the machine's folder) that its record or a snapshot names; and those of them that are layers."""
    record = world.record(folder)
    disks: list[Disk] = [*record.disks]
    for manifest in manifests(world, folder).values():
        disks += [Disk(disk.name, disk.layers, disk.layers[-1]) for disk in manifest.disks]
    layers = {layer for disk in disks for layer in disk.layers}
    return {*layers, *(disk.head for disk in disks), record.variables}, layers


def manifests(world: World, folder: str) -> dict[str, Manifest]:
    """All snapshots that have their name, and what a suspend kept. Raises Violation when one cannot be read."""
    paths = [f"snapshots/{name}" for name in world.files.names(f"{folder}/snapshots") if not name.startswith(".")]
    paths += ["suspended"] if world.files.exists(f"{folder}/suspended") else []
    return {path: world.manifest(f"{folder}/{path}") for path in paths}


def sweep_unnamed(world: World, folder: str) -> None:
    """Remove disks, layers and variables that nobody names; layers that are not read-only yet get on the disk, and become so."""
    named, layers = named_files(world, folder)
    for part in ("disks", "layers", "firmware"):
        for name in world.files.names(f"{folder}/{part}"):
            if f"{part}/{name}" not in named:
                world.files.unlink(f"{folder}/{part}/{name}")
    for layer in layers:
        inode = world.open(folder, layer)
        if not world.files.nodes[inode].readonly:
            world.files.fsync(inode)
            world.files.freeze(f"{folder}/{layer}")


def sweep_step(world: World, folder: str) -> Step:
    return Step("files nobody names swept", lambda: sweep_unnamed(world, folder))


# -- wrong orders ---------------------------------------------------------------------------------------------------------
Mutation = Callable[[list[Step]], list[Step]]


def drop(prefix: str, first: int = 1000) -> Mutation:
    """Without the (``first`` so many) steps whose names begin so."""

    def mutate(steps: list[Step]) -> list[Step]:
        dropped = [step for step in steps if step.name.startswith(prefix)][:first]
        assert dropped, f"no step '{prefix}'"
        return [step for step in steps if step not in dropped]

    return mutate


def move(prefix: str, *, before: str) -> Mutation:
    """With the steps whose names begin with ``prefix`` right before the first that begins with ``before``."""

    def mutate(steps: list[Step]) -> list[Step]:
        moved = [step for step in steps if step.name.startswith(prefix)]
        rest = [step for step in steps if not step.name.startswith(prefix)]
        assert moved, f"no step '{prefix}'"
        place = next((index for index, step in enumerate(rest) if step.name.startswith(before)), None)
        assert place is not None, f"no step '{before}'"
        return [*rest[:place], *moved, *rest[place:]]

    return mutate


def all_of(mutations: Iterable[Mutation]) -> Mutation:
    def mutate(steps: list[Step]) -> list[Step]:
        for mutation in mutations:
            steps = mutation(steps)
        return steps

    return mutate
