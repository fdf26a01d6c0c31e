"""Wrong orders, each a mistake somebody could make. The model must find every one of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tests.model import loading, merging, recovery, steps, taking
from tests.model.steps import Mutation, all_of, drop, move, named_files, sweep_unnamed
from tests.model.world import Disk, Manifest, World

# What is wrong: the case of settings.py it is tried in, and the mutation of its steps.
WRONG_ORDERS: dict[str, tuple[str, Mutation]] = {
    # -- taking
    "the switch before the record": ("snapshot of a running machine", move("QEMU switches", before="record written")),
    "the record before its heads are on the disk": ("snapshot of a running machine", drop("disks/ fsynced")),
    "the record before its layers are on the disk": ("snapshot of a running machine", drop("layers/ fsynced")),
    "the record renamed before it is fsynced": ("snapshot of a running machine", move("record fsynced", before="record in")),
    "the record not fsynced": ("snapshot of a running machine", drop("record fsynced")),
    "the record's folder not fsynced": ("snapshot of a running machine", drop("record in its folder")),
    "old names gone before the record": ("snapshot of a running machine", move("old name goes", before="record written")),
    "a guest going on before the switch": ("snapshot of a running machine", move("guest goes on", before="QEMU switches")),
    "a guest going on before its state is written": ("snapshot of a running machine", move("guest goes on", before="state")),
    "a switch after the instant is over": ("snapshot of a running machine", move("QEMU switches", before="layer read-only")),
    "the switch before memory is complete": ("snapshot of a running machine", move("QEMU switches", before="memory written")),
    "the manifest before memory is on the disk": ("snapshot of a running machine", drop("memory fsynced")),
    "the manifest before the state is on the disk": ("snapshot of a running machine", drop("state fsynced")),
    "the manifest before the variables are on the disk": ("snapshot of a running machine", drop("variables fsynced")),
    "the manifest renamed before it is fsynced": ("snapshot of a running machine", drop("manifest fsynced")),
    "the name before the manifest": ("snapshot of a running machine", move("published", before="manifest written")),
    "the name not fsynced": ("snapshot of a running machine", drop("publication fsynced")),
    "former heads not fsynced": ("snapshot of a crashed machine", drop("former head fsynced")),
    "no fresh heads for a stopped machine": ("snapshot of a crashed machine", drop("record")),
    "an undo that sweeps before the record": ("failed snapshot", move("files nobody names", before="record written aside")),
    # -- suspending
    "a suspend noted while its guest could go on": ("suspend", move("journal: suspend", before="keeper lets go")),
    "a suspend published while its guest could go on": ("suspend", move("keeper lets go", before="run folder")),
    "a suspend's name not fsynced": ("suspend", drop("publication fsynced")),
    "a suspend's own variables not fsynced": ("suspend", drop("live variables")),
    "a suspend's memory not fsynced": ("suspend", drop("memory fsynced")),
    # -- starting
    "a suspend's memory kept when the guest runs on": ("start after suspend", drop("renamed away")),
    "a suspend's memory taken away too late": ("start after suspend", move("new guest goes on", before="renamed away")),
    "a suspend's memory taken away, not fsynced": ("start after suspend", drop("fsynced away")),
    "a resume promised before memory is away": ("start after suspend", move("new keeper told", before="fsynced away")),
    # -- restoring
    "the restored record while the old guest runs": ("restore", move("old QEMU ended", before="run folder taken")),
    "the new guest before the record": ("restore", move("new guest goes on", before="record written")),
    "the new guest before the record's folder is fsynced": ("restore", move("new guest goes on", before="record in")),
    "the new guest beside the old one": ("restore", move("new guest goes on", before="old QEMU ended")),
    "a resume promised before the record": ("restore", move("new keeper told", before="record in its folder")),
    "old heads swept before the record": ("restore", move("files nobody names", before="record written")),
    "old heads swept before the record's folder is fsynced": ("restore", move("files nobody names", before="record in")),
    "fresh heads not fsynced": ("restore", drop("disks/ fsynced")),
    "restored variables not fsynced": ("restore", drop("variables fsynced")),
    "restored variables' name not fsynced": ("restore", drop("firmware/ fsynced")),
    "what was is kept without its switch": ("restore keeping", drop("QEMU switches")),
    "what was is kept, without new heads in the record": (
        "restore keeping",
        all_of([drop("QEMU switches"), drop("old name goes"), drop("record", first=4)]),
    ),
    "what was is kept after the record": ("restore keeping", move("published", before="run folder")),
    # -- forking and cloning
    "a child's guest before its folder has its name": ("fork of a snapshot", move("new guest", before="child published")),
    "a child's guest before its name is on the disk": ("fork of a snapshot", drop("machines/ fsynced")),
    "a child without its layers on the disk": ("fork of a snapshot", drop("child's layers/ fsynced")),
    "a child without its heads on the disk": ("fork of a snapshot", drop("disks/ fsynced")),
    "a child published before its record": ("fork of a snapshot", move("child published", before="record written")),
    "a child whose parent's heads are not frozen": ("fork of a running machine", drop("QEMU switches")),
    "a child published before its parent's instant": (
        "fork of a running machine",
        move("child published", before="memory written"),
    ),
    "a child's memory gone before it is loaded": ("fork of a running machine", move("staged snapshot", before="new QEMU")),
    "a clone of what is not on the disk": ("clone", drop("copy fsynced")),
    "a clone without journal": ("clone", drop("journal: clone")),
    "a clone without its name on the disk": ("clone", drop("machines/ fsynced")),
    # -- deleting and merging
    "layers gone before the snapshot": ("delete of what was kept", move("files nobody names", before="renamed away")),
    "layers gone before the snapshot's name, for good": ("delete of what was kept", move("files nobody", before="fsynced away")),
    "files gone before the snapshot's name, for good": ("delete of a snapshot", drop("fsynced away")),
    "a machine's files gone before its name": ("delete of a machine", drop("fsynced away")),
    "a merged layer not fsynced": ("merge of a stopped machine", drop("merged file fsynced")),
    "a merged layer's name not fsynced": ("merge of a stopped machine", drop("merged layer's folder fsynced")),
    "a merged layer named before it is there": ("merge of a running machine", move("record", before="merged layer linked")),
    "merged layers gone before the record": ("merge of layers of its own", move("files nobody", before="record in")),
}


def _nothing(*_: object) -> Iterator[str]:
    yield from ()


def _written_heads(_: World, manifest: Manifest) -> tuple[Disk, ...]:
    return manifest.disks


def _same_variables(world: World, folder: str) -> str:
    return world.record(folder).variables


def _is_there(world: World, folder: str) -> bool:
    return world.files.exists(f"{folder}/suspended")


def _freeze_only(world: World, folder: str) -> None:
    for layer in named_files(world, folder)[1]:
        world.files.freeze(f"{folder}/{layer}")
    sweep_unnamed(world, folder)


def _without_count(disk: Disk, first: int, last: int, layer: str) -> Disk:
    return replace(disk, layers=(*disk.layers[:first], layer, *disk.layers[last:]), runs=())


# What is wrong: the case, functions of the model replaced by mistaken ones (module, name, by what), a mutation of the steps.
MISTAKES: dict[str, tuple[str, list[tuple[Any, str, Any]], Mutation | None]] = {
    "recovery leaves QEMU on the old heads": ("snapshot of a running machine", [(recovery, "_is_named", lambda *_: True)], None),
    "recovery builds upon names that may not last": ("clone", [(recovery, "make_last", lambda *_: None)], None),
    "recovery leaves what a suspend kept": ("start after suspend", [(recovery, "_give_up", _nothing)], None),
    "recovery finishes every suspend": ("suspend", [(recovery, "_journal", lambda *_: ("suspend", "publish"))], None),
    "recovery does not look for a second QEMU": ("restore", [(recovery, "_second_qemu", _nothing)], None),
    "recovery freezes layers that are not on the disk": (
        "snapshot of a running machine",
        [(recovery, "sweep_unnamed", _freeze_only)],
        None,
    ),
    "a sweep forgets what snapshots name": ("restore keeping", [(steps, "manifests", lambda *_: {})], None),
    "a merge forgets what snapshots name": ("merge of a running machine", [(steps, "manifests", lambda *_: {})], None),
    "a merge of a chain that is another by now": (
        "merge while it is restored",
        [(merging, "is_as_expected", lambda *_: True)],
        None,
    ),
    "a merge that takes places for numbers": ("merge above a merged layer", [(merging, "node", lambda _, place: place)], None),
    "a merge that does not count what it took": (
        "snapshot after a merge",
        [(merging, "with_merged", _without_count)],
        None,
    ),
    "a start that goes on counting": (
        "snapshot of one that started after a merge",
        [(loading, "as_launched", lambda record: record)],
        None,
    ),
    "an undo that does not ask QEMU": (
        "snapshot whose switch was not answered",
        [(taking, "record_after_failure", lambda take: take.before)],
        None,
    ),
    "a restore on the heads written since": (
        "restore of a stopped machine",
        [(loading, "fresh_disks", _written_heads)],
        drop("fresh head"),
    ),
    "a restore over the variables in use": (
        "restore of a stopped machine",
        [(loading, "fresh_variables", _same_variables)],
        None,
    ),
    "a suspend's memory loaded whatever the heads are": (
        "restore of a suspended machine",
        [(loading, "fits", _is_there), (recovery, "fits", _is_there)],
        None,
    ),
}
