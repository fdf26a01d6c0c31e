"""The situations in which verbs are tried, each made anew by its function; and which verbs are legal in a world."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tests.model.changing import delete_machine, delete_snapshot
from tests.model.loading import clone, fits, fork_running, fork_snapshot, new_machine, restore, start
from tests.model.merging import merge
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


def deep(disks: int) -> World:
    """Running, on four layers, of which its snapshot "one" names two."""
    return _deepened(snapshotted(disks), "two", "three")


def merged(disks: int) -> World:
    """Running, its QEMU having taken a merged layer in: upon three layers one of which stands for two."""
    return _ran(deep(disks), lambda world: merge(world, "web"))


def merged_before(disks: int) -> World:
    """The same, and stopped."""
    world = merged(disks)
    world.end(world.qemus[0])
    world.files.remove_tree("machines/web/run")
    return world


def merged_started(disks: int) -> World:
    """Running anew."""
    return _ran(merged_before(disks), lambda world: start(world, "web"))


def merged_below(disks: int) -> World:
    """Running, on layers upon a merged one that a snapshot names."""
    return _deepened(_ran(merged(disks), lambda world: create_snapshot(world, "web", "four")), "five", "six")


def branched(disks: int) -> World:
    """Running on one of two branches, either of which has layers of its own upon those of the snapshot "one"."""
    return _ran(
        snapshotted(disks),
        lambda world: create_snapshot(world, "web", "two"),
        lambda world: create_snapshot(world, "web", "three"),
        lambda world: restore(world, "web", "one", keep=False),
        lambda world: create_snapshot(world, "web", "four"),
        lambda world: create_snapshot(world, "web", "five"),
    )


def stopped_deep(disks: int) -> World:
    world = deep(disks)
    world.end(world.qemus[0])
    world.files.remove_tree("machines/web/run")
    return world


def restored(disks: int) -> World:
    """Running, with the snapshots "one" and "before-restore"."""
    return _ran(snapshotted(disks), lambda world: restore(world, "web", "one", keep=True))


def suspended(disks: int) -> World:
    return _ran(snapshotted(disks), lambda world: suspend(world, "web"))


def family(disks: int) -> World:
    """Running, with a running child made from a snapshot."""
    return _ran(snapshotted(disks), lambda world: fork_snapshot(world, "web", "one", "kid"))


def _deepened(world: World, *names: str) -> World:
    """With layers that are left of snapshots."""
    for name in names:
        for verb in (create_snapshot, delete_snapshot):
            verb(world, "web", name).run()
            world.guests_live()
    return world


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
    "merge of a stopped machine": (stopped_deep, lambda world: merge(world, "web")),
    "merge of a running machine": (deep, lambda world: merge(world, "web")),
    "merge of layers of its own": (thinned, lambda world: merge(world, "web", 0)),
    "merge of a suspended machine": (suspended, lambda world: merge(world, "web", 0)),
    "second merge": (merged, lambda world: merge(world, "web", 0)),
    "merge above a merged layer": (merged_below, lambda world: merge(world, "web", 4)),
    "snapshot after a merge": (merged, lambda world: create_snapshot(world, "web", "four")),
    "snapshot of one that started after a merge": (merged_started, lambda world: create_snapshot(world, "web", "four")),
    "restore after a merge": (merged, lambda world: restore(world, "web", "one", keep=True)),
    "start after a merge": (merged_before, lambda world: start(world, "web")),
    "merge while a snapshot is taken": (deep, lambda world: merge(world, "web", 1, create_snapshot(world, "web", "four"))),
    "merge while it is restored": (branched, lambda world: merge(world, "web", 1, restore(world, "web", "three", keep=False))),
    "merge while it is suspended": (deep, lambda world: merge(world, "web", 1, suspend(world, "web"))),
    "merge while it starts": (stopped_deep, lambda world: merge(world, "web", 1, start(world, "web"))),
    "merge while it is deleted": (deep, lambda world: merge(world, "web", 1, delete_machine(world, "web"))),
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
        if (depth := len(world.record(folder).disks[0].layers)) > 1:
            for first in {0, min(1, depth - 2), depth // 2 - 1}:
                found[f"merge {machine} from {first}"] = partial(merge, world, machine, first)
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
