"""The situations in which verbs are tried, each made anew by its function; and which verbs are legal in a world."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tests.model.changing import delete_machine, delete_snapshot, merge
from tests.model.loading import clone, fits, fork_running, fork_snapshot, new_machine, restore, start
from tests.model.steps import Verb, folder_of
from tests.model.taking import create_snapshot, failed_snapshot, suspend
from tests.model.world import World

Situation = Callable[[int], World]  # how many disks the machine "web" has


def stopped(disks: int) -> World:
    world = World()
    new_machine(world, "web", disks)
    return world


def running(disks: int) -> World:
    return _ran(stopped(disks), lambda world: start(world, "web"))


def paused(disks: int) -> World:
    world = running(disks)
    world.qemus[0].paused = True
    return world


def crashed(disks: int) -> World:
    """Stopped, with writes of its last guest that nobody flushed."""
    world = running(disks)
    for _ in range(6):
        world.guest_writes(world.qemus[0])
    world.end(world.qemus[0])
    world.files.remove_tree("machines/web/run")
    return world


def snapshotted(disks: int) -> World:
    return _ran(running(disks), lambda world: create_snapshot(world, "web", "one"))


def snapshotted_stopped(disks: int) -> World:
    """Stopped, with a snapshot of it running."""
    world = snapshotted(disks)
    world.end(world.qemus[0])
    world.files.remove_tree("machines/web/run")
    return world


def cold_snapshot(disks: int) -> World:
    """Running, with a snapshot of it stopped."""
    return _ran(stopped(disks), lambda world: create_snapshot(world, "web", "one"), lambda world: start(world, "web"))


def thinned(disks: int) -> World:
    """Running, on layers that only the machine names."""
    return _ran(snapshotted(disks), lambda world: delete_snapshot(world, "web", "one"))


def restored(disks: int) -> World:
    """Running, with the snapshots "one" and "before-restore"."""
    return _ran(snapshotted(disks), lambda world: restore(world, "web", "one", keep=True))


def suspended(disks: int) -> World:
    return _ran(snapshotted(disks), lambda world: suspend(world, "web"))


def family(disks: int) -> World:
    """Running, with a running child made from a snapshot."""
    return _ran(snapshotted(disks), lambda world: fork_snapshot(world, "web", "one", "kid"))


def _ran(world: World, *verbs: Callable[[World], Verb]) -> World:
    for verb in verbs:
        verb(world).run()
        world.guests_live()
    return world


CASES: dict[str, tuple[Situation, Callable[[World], Verb]]] = {
    "snapshot of a stopped machine": (stopped, lambda world: create_snapshot(world, "web", "one")),
    "snapshot of a crashed machine": (crashed, lambda world: create_snapshot(world, "web", "one")),
    "snapshot of a running machine": (running, lambda world: create_snapshot(world, "web", "one")),
    "snapshot of a paused machine": (paused, lambda world: create_snapshot(world, "web", "one")),
    "failed snapshot": (running, lambda world: failed_snapshot(world, "web", switched=False)),
    "snapshot whose switch was not answered": (running, lambda world: failed_snapshot(world, "web", switched=True)),
    "second snapshot": (snapshotted, lambda world: create_snapshot(world, "web", "two")),
    "snapshot of a child": (family, lambda world: create_snapshot(world, "kid", "one")),
    "suspend": (snapshotted, lambda world: suspend(world, "web")),
    "start": (crashed, lambda world: start(world, "web")),
    "start after suspend": (suspended, lambda world: start(world, "web")),
    "restore": (snapshotted, lambda world: restore(world, "web", "one", keep=False)),
    "restore keeping": (snapshotted, lambda world: restore(world, "web", "one", keep=True)),
    "restore of a stopped machine": (snapshotted_stopped, lambda world: restore(world, "web", "one", keep=False)),
    "restore of a stopped machine, keeping": (snapshotted_stopped, lambda world: restore(world, "web", "one", keep=True)),
    "restore of a snapshot without memory": (cold_snapshot, lambda world: restore(world, "web", "one", keep=False)),
    "restore of a suspended machine": (suspended, lambda world: restore(world, "web", "one", keep=False)),
    "undo of a restore": (restored, lambda world: restore(world, "web", "before-restore", keep=True)),
    "fork of a snapshot": (snapshotted, lambda world: fork_snapshot(world, "web", "one", "kid")),
    "fork of a running machine": (snapshotted, lambda world: fork_running(world, "web", "kid")),
    "fork of a fork": (family, lambda world: fork_running(world, "kid", "grandkid")),
    "clone": (crashed, lambda world: clone(world, "web", "kid")),
    "delete of a snapshot": (snapshotted, lambda world: delete_snapshot(world, "web", "one")),
    "delete of a child's snapshot": (family, lambda world: delete_snapshot(world, "web", "one")),
    "delete of what was kept": (restored, lambda world: delete_snapshot(world, "web", "before-restore")),
    "delete of a machine": (snapshotted, lambda world: delete_machine(world, "web")),
    "delete of a parent": (family, lambda world: delete_machine(world, "web")),
    "merge": (snapshotted, lambda world: merge(world, "web", "root")),
    "merge of layers of its own": (thinned, lambda world: merge(world, "web", "root")),
    "merge of a suspended machine": (suspended, lambda world: merge(world, "web", "root")),
}


def case(name: str, disks: int) -> tuple[World, Verb]:
    situation, verb = CASES[name]
    world = situation(disks)
    return world, verb(world)


def legal(world: World) -> dict[str, Callable[[], Verb]]:
    """All verbs that may be asked for in a recovered world, by what a user would write."""
    found: dict[str, Callable[[], Verb]] = {}
    machines = world.files.names("machines")
    free = next((name for name in ("kid", "grandkid") if name not in machines), None)
    for machine in machines:
        folder = folder_of(machine)
        qemu = world.qemu(folder)
        snapshots = world.files.names(f"{folder}/snapshots")
        if not fits(world, folder):  # a suspended machine's heads must stay
            for new in {"one", "two"} - {*snapshots}:
                found[f"snapshot create {machine}@{new}"] = partial(create_snapshot, world, machine, new)
        for snapshot in snapshots:
            found[f"snapshot delete {machine}@{snapshot}"] = partial(delete_snapshot, world, machine, snapshot)
            found[f"snapshot restore {machine}@{snapshot} --drop"] = partial(restore, world, machine, snapshot, keep=False)
            if not fits(world, folder):
                found[f"snapshot restore {machine}@{snapshot}"] = partial(restore, world, machine, snapshot, keep=True)
            if free and world.manifest(f"{folder}/snapshots/{snapshot}").memory:
                found[f"fork {machine}@{snapshot} {free}"] = partial(fork_snapshot, world, machine, snapshot, free)
        found[f"merge {machine}"] = partial(merge, world, machine, "root")
        if len(machines) > 1:
            found[f"delete {machine}"] = partial(delete_machine, world, machine)
        if qemu is None:
            found[f"start {machine}"] = partial(start, world, machine)
            if free and not fits(world, folder):
                found[f"clone {machine} {free}"] = partial(clone, world, machine, free)
        else:
            found[f"suspend {machine}"] = partial(suspend, world, machine)
            for switched in (False, True):
                found[f"fail {machine} {switched}"] = partial(failed_snapshot, world, machine, switched=switched)
            if free:
                found[f"fork {machine} {free}"] = partial(fork_running, world, machine, free)
    return found
