"""Merging: a machine's chains of layers stay short. Each snapshot and each fork of a running machine makes them longer by one.

    behind the verb that made it too long, without the machine's lock: several layers become one new file, in a folder of its own
    → with it: the file is linked into the machine's folder; a running QEMU takes it in; the record names it; what nobody names
    goes

Snapshots go on naming what they named. The image's layer stays, which many machines share, and so does the topmost one: a running
QEMU knows it by its number. See docs/snapshots.md.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from insula.disks.layers import link_layer
from insula.disks.merge import merge_layers
from insula.errors import InsulaError
from insula.host.files import fsync_file
from insula.host.process import leave
from insula.host.program import own_command
from insula.model.requests import MergeLayers
from insula.operations import journal
from insula.operations.context import Context
from insula.operations.hold import Held, hold_machine
from insula.operations.operation import Operation
from insula.operations.promises import check_disk
from insula.operations.settle import find_by_id
from insula.store import names
from insula.store.events import append_event
from insula.store.locks import only_one
from insula.store.machines import DiskRecord, MachineRecord, new_machine_folder, read_machine, write_machine
from insula.store.snapshots import needed_layers, readable_snapshots, snapshot_layers, sweep_snapshots
from insula.store.sums import FileSum, read_stamps, stamp_file, write_stamps

if TYPE_CHECKING:
    from insula.engines.base import MergedLayer

# Beyond this a chain is merged. QEMU opens each file of a chain, and looks through it from the top to its end.
BOUND: Final = 16
# Beyond this a verb that would make it longer merges first itself: those behind cannot keep up.
MOST: Final = 3 * BOUND
_PATIENCE: Final = 600.0  # seconds for a verb that holds the machine


def is_too_long(record: MachineRecord, bound: int = BOUND) -> bool:
    return any(len(disk.layers) > bound for disk in record.disks)


def merge_behind(context: Context, record: MachineRecord) -> None:
    """Start merging the machine's layers if there are too many, in a process of its own; returns at once."""
    if is_too_long(record) and not record.ephemeral:
        with contextlib.suppress(InsulaError, OSError):
            leave(own_command("_merge", str(context.home.root), record.id))


def merge_first(context: Context, name: str, operation: Operation) -> None:
    """Before a verb makes a chain longer that is much too long already: merge now. Nothing happens when that cannot be."""
    with contextlib.suppress(InsulaError, OSError):
        record = read_machine(context.home.machine(name))
        if is_too_long(record, MOST):
            operation.tell("merge its layers")
            merge(context, MergeLayers(id=record.id), operation)


def merge(context: Context, request: MergeLayers, operation: Operation) -> None:
    """Merge the layers of the machine with this id until its chains are short. One who does the same already is waited for.

    Raises DamagedRecord (a layer is not what it should be), HostLacks (``no_space``), Busy; then the machine is as it was.
    """
    context.home.prepare()
    with only_one(context.home.host / f"merge-{request.id}.lock"):
        folder = find_by_id(context.home, request.id)
        if folder is None:
            return
        for index in range(len(read_machine(folder).disks)):
            record = read_machine(folder)
            layers = record.disks[index].layers
            if len(layers) > BOUND and not (folder / names.SUSPENDED).exists():
                operation.tell("merge its layers")
                _merge_disk(context, operation, folder, record, index, choose_run(layers, _named(folder)))


def choose_run(layers: Sequence[str], named: set[str]) -> tuple[int, int]:
    """Pure: which layers of a chain become one, as a slice: the longest run that no snapshot names if that makes the chain short
    enough, else all between the lowest and the topmost one."""
    whole = (1, len(layers) - 1)
    best, start = (1, 1), 1
    for index in range(1, len(layers)):
        if index == whole[1] or layers[index] in named:
            if index - start > best[1] - best[0]:
                best = (start, index)
            start = index + 1
    return best if len(layers) - (best[1] - best[0]) + 1 <= BOUND else whole


def _named(folder: Path) -> set[str]:
    return {layer for _, record in readable_snapshots(folder) for layer in snapshot_layers(record)}


def _merge_disk(
    context: Context, operation: Operation, folder: Path, record: MachineRecord, index: int, run: tuple[int, int]
) -> None:
    disk, (first, last) = record.disks[index], run
    token = f"m{os.urandom(4).hex()}"
    with new_machine_folder(context.home, "merge") as staged:
        # Links: whatever happens to the machine meanwhile, these stay.
        files = [staged / f"{number}" for number in range(last)]
        for path, file in zip(disk.layers, files, strict=False):
            link_layer(folder / path, file)
        check_disk(context, operation, sum(file.stat().st_blocks * 512 for file in files[first:]), whose="the merged layer")
        merged = staged / names.MERGED
        merge_layers(files[:first], files[first:], merged, disk.size, record.identity.uuid)
        stamp = stamp_file(merged)
        renamed = find_by_id(context.home, record.id)
        if renamed is None:
            return
        with hold_machine(context, renamed.name, "merge", patience=_PATIENCE) as held:
            layer = f"{names.LAYERS}/{disk.name}-{token}.qcow2"
            after = _replaced(held.record, index, disk.layers[:last], first, layer)
            if after is None or (held.folder / names.SUSPENDED).exists():
                return  # the machine was restored meanwhile, or suspended
            journal.note(held.folder, "merge", "link the merged layer")
            _put(context, held, merged, layer, index, after, FileSum(stamp.size, stamp.sha256))
            note = held.folder / names.VERIFIED_LAYERS
            write_stamps(note, read_stamps(note) | {layer: stamp})
            append_event(held.folder, "layers-merged", disk=disk.name, layers=last - first)
            journal.clear(held.folder)


def _replaced(record: MachineRecord, index: int, expected: list[str], first: int, layer: str) -> list[DiskRecord] | None:
    """Pure: the machine's disks with the merged layer, or None when the chain is another by now."""
    disk = record.disks[index] if index < len(record.disks) else None
    if disk is None or disk.layers[: len(expected)] != expected or len(disk.layers) <= len(expected):
        return None
    layers = [*expected[:first], layer, *disk.layers[len(expected) :]]
    runs = disk.runs | {layer: len(expected) - first - 1 + sum(disk.runs.get(path, 0) for path in expected[first:])}
    changed = msgspec.structs.replace(
        disk,
        layers=layers,
        merged=disk.merged + len(disk.layers) - len(layers),
        runs={path: fewer for path, fewer in runs.items() if path in layers},
    )
    return [*record.disks[:index], changed, *record.disks[index + 1 :]]


def _as_engine_knows(name: str, disk: DiskRecord, path: Path) -> MergedLayer:
    """Pure: the merged layer at ``path``, ``disk`` having it already."""
    from insula.engines.base import MergedLayer

    def known(place: int) -> int | str:
        return _token(disk.layers[place]) if disk.layers[place] in disk.runs else disk.number(place)

    place = disk.layers.index(f"{names.LAYERS}/{path.name}")
    return MergedLayer(
        disk=name,
        below=known(place - 1) if place else None,
        above=known(place + 1),
        lowest=disk.number(place),
        end=disk.number(place + 1),
        token=_token(path.name),
        path=path,
    )


def _token(layer: str) -> str:
    """What tells a merged layer from all others; see `_merge_disk`."""
    return layer.rpartition("-")[2].removesuffix(".qcow2")


def _put(context: Context, held: Held, merged: Path, layer: str, index: int, disks: list[DiskRecord], expected: FileSum) -> None:
    """The merged layer comes into the machine's folder, into its QEMU, into its record, in this order: until the last it is as
    good as the layers it is made of, which the record names."""
    link_layer(merged, held.folder / layer)
    (held.folder / layer).chmod(names.LAYER_MODE)
    fsync_file(held.folder / layer)
    if held.status.state.has_process:
        context.engine.put_merged(held.folder / names.RUN, _as_engine_knows(f"disk{index}", disks[index], held.folder / layer))
    after = msgspec.structs.replace(held.record, disks=disks)
    needed = needed_layers(after)
    sums = {path: entry for path, entry in (held.record.sums | {layer: expected}).items() if path in needed}
    after = msgspec.structs.replace(after, sums=sums)
    write_machine(held.folder, after)
    sweep_snapshots(held.folder, after)
