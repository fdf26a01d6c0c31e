"""Deleting snapshots and machines: docs/snapshots.md, "Deleting and merging"."""

from __future__ import annotations

from functools import partial

from tests.model.loading import gone
from tests.model.steps import Step, Verb, cleared, folder_of, noted, sweep_step
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
