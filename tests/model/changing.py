"""Deleting snapshots and machines, and merging layers: docs/snapshots.md, "Deleting and merging"."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from tests.model.loading import gone
from tests.model.steps import Step, Verb, cleared, folder_of, fsynced, noted, record_steps, sweep_step
from tests.model.world import World


def delete_snapshot(world: World, machine: str, snapshot: str) -> Verb:
    folder = folder_of(machine)
    key = f"{machine}@{snapshot}"
    renamed, fsync, removed = gone(world, f"{folder}/snapshots", snapshot)

    def begin() -> None:
        world.present.discard(key)
        world.maybe.add(key)

    steps = [
        noted(world, folder, "delete snapshot"),
        renamed,
        fsync,
        sweep_step(world, folder),
        removed,
        cleared(world, folder),
    ]
    return Verb("delete snapshot", machine, steps, begin, partial(world.maybe.discard, key))


def delete_machine(world: World, machine: str) -> Verb:
    folder = folder_of(machine)
    qemu = world.qemu(folder)
    keys = {key for key in {*world.present, *world.maybe} if key.partition("@")[0] == machine}

    def begin() -> None:
        world.present -= keys
        world.maybe |= keys
        world.suspended.pop(machine, None)

    def done() -> None:
        world.maybe -= keys

    def end() -> None:
        world.end(qemu)
        begin()  # again: its guest may have lived since

    steps = [Step("QEMU ended", end), *gone(world, "machines", machine)]
    return Verb("delete", machine, steps, begin, done)


def merge(world: World, machine: str, disk_name: str) -> Verb:
    """All layers of one disk become one new file; snapshots go on naming the old ones."""
    files, folder = world.files, folder_of(machine)
    record = world.record(folder)
    disk = next(disk for disk in record.disks if disk.name == disk_name)
    merged = f"layers/{disk.name}-merged-{world.count()}"
    path = f"{folder}/{merged}"
    after = replace(record, disks=tuple(replace(one, layers=(merged,)) if one.name == disk_name else one for one in record.disks))

    def write() -> None:
        content: dict[int, int] = {}
        for layer in disk.layers:
            content |= files.read(f"{folder}/{layer}")
        world.frozen[files.create(path, content)] = dict(content)

    steps = [
        noted(world, folder, "merge"),
        Step("new layer written", write),
        fsynced(world, "new layer fsynced", path),
        fsynced(world, "layers/ fsynced", f"{folder}/layers"),
        *record_steps(world, folder, lambda: after),
        sweep_step(world, folder),
        cleared(world, folder),
    ]
    return Verb("merge", machine, steps)
