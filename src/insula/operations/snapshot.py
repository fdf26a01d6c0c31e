"""Snapshots: take, list, show, delete. Going back to one is restore.py."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from insula.errors import AlreadyExists, HostLacks, InsulaError, UsageError
from insula.model.requests import CreateSnapshot, DeleteSnapshot, ListSnapshots, ShowSnapshot
from insula.model.status import SnapshotDetails, SnapshotStatus
from insula.operations import journal
from insula.operations.capture import captured
from insula.operations.context import Context
from insula.operations.hold import Held, hold_machine
from insula.operations.merge import merge_behind, merge_first
from insula.operations.operation import Operation
from insula.operations.promises import check_disk, growth_of
from insula.store import names
from insula.store.events import append_event
from insula.store.machines import MachineRecord, machine_folder, read_machine, write_machine
from insula.store.snapshots import (
    SnapshotRecord,
    complete_snapshot,
    hand_on_children,
    publish_snapshot,
    put_away_snapshot,
    read_snapshot,
    readable_snapshots,
    snapshot_folder,
    snapshot_layers,
    snapshot_names,
    sweep_snapshots,
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


def create(context: Context, request: CreateSnapshot, operation: Operation) -> SnapshotStatus:
    """Take a snapshot of a running, paused or stopped machine; on return it is on the disk.

    Raises UsageError (a hostile name), AlreadyExists, NotFound, Busy, HostLacks, MachineEnded; then there is none.
    """
    if request.snapshot:
        check_snapshot_name(request.snapshot)
    merge_first(context, request.name, operation)
    with hold_machine(context, request.name, "snapshot") as held:
        name = request.snapshot or _free_name(held.folder)
        folder = held.folder / names.SNAPSHOTS / name
        if folder.exists():
            raise AlreadyExists(
                f"{request.name} has a snapshot '{name}' already",
                code="snapshot_exists",
                hint=f"choose another name, or: insula snapshot delete {request.name}@{name}",
            )
        check_disk(context, operation, _growth(held), whose="the snapshot")
        with captured(context, held, operation, description=request.description) as state:
            complete_snapshot(state.folder, state.record)
            publish_snapshot(state.folder, folder)
        note_sums(held.folder, state.machine, state.record)
        append_event(held.folder, "snapshot", name=name)
        journal.clear(held.folder)
        merge_behind(context, state.machine)
        return _status(held.folder, name, state.record, dict(readable_snapshots(held.folder)), state.record.id)


def _growth(held: Held) -> int:
    """By how much a snapshot lets a machine's folder grow: by its memory, and by what its disks may write anew."""
    record = held.record
    sizes = sum(disk.size for disk in record.disks) - growth_of(held.folder, record.disks)
    return sizes + (record.hardware.total if held.status.state.has_process else 0)


def check_snapshot_name(name: str) -> None:
    """Raises UsageError (``bad_name``)."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            "a snapshot's name is 1 to 63 letters, digits, '-', '_' or '.', and begins with a letter or digit", code="bad_name"
        )


def _free_name(folder: Path) -> str:
    """``snap1``, ``snap2``…: one more than the highest there is."""
    numbers = [int(match[1]) for name in snapshot_names(folder) if (match := re.fullmatch(r"snap(\d{1,9})", name))]
    return f"snap{max(numbers, default=0) + 1}"


def note_sums(folder: Path, record: MachineRecord, snapshot: SnapshotRecord) -> None:
    """The machine rests on the snapshot's layers now: its record says what they must be, and which snapshot it descends from."""
    sums = {path: snapshot.sums[path] for path in snapshot_layers(snapshot) if path in snapshot.sums}
    write_machine(folder, msgspec.structs.replace(record, sums=sums, parent=snapshot.id))


def list_snapshots(context: Context, request: ListSnapshots, operation: Operation) -> list[SnapshotStatus]:
    """All snapshots of a machine, oldest first; one that cannot be read is among them and says why."""
    del operation
    folder = machine_folder(context.home, request.name)
    return sorted(_look(folder, snapshot_names(folder)), key=lambda status: (status.created, status.name))


def look_at(folder: Path, name: str) -> SnapshotStatus:
    """One snapshot of the machine in ``folder``, as `list_snapshots` shows it."""
    return next(_look(folder, [name]))


def _look(folder: Path, wanted: list[str]) -> Iterator[SnapshotStatus]:
    present = _present(folder)
    records = dict(readable_snapshots(folder))
    for name in wanted:
        yield _status(folder, name, records[name], records, present) if name in records else _broken(folder, name)


def show(context: Context, request: ShowSnapshot, operation: Operation) -> SnapshotDetails:
    """All that is known of one snapshot."""
    del operation
    folder = machine_folder(context.home, request.name)
    record = read_snapshot(snapshot_folder(folder, request.snapshot))
    board = record.board
    place = folder / names.SNAPSHOTS / request.snapshot
    status = _status(folder, request.snapshot, record, dict(readable_snapshots(folder)), _present(folder))
    return SnapshotDetails(
        **{name: getattr(status, name) for name in status.__struct_fields__},
        id=record.id,
        cpus=record.hardware.used_cpus,
        memory=record.hardware.usable,
        disks={disk.name: disk.size for disk in record.disks},
        files={entry.name: _occupied(entry) for entry in sorted(place.iterdir())},
        qemu=board.qemu if board else "",
        board=board.machine if board else "",
        cpu_model=board.cpu if board else "",
        accelerator=board.accelerator if board else "",
    )


def delete(context: Context, request: DeleteSnapshot, operation: Operation) -> SnapshotStatus:
    """Delete a snapshot and the layers nobody else names; returns what it was. Machines forked from it are not concerned."""
    with hold_machine(context, request.name, "snapshot delete") as held:
        folder = snapshot_folder(held.folder, request.snapshot)
        was = look_at(held.folder, request.snapshot)
        operation.tell("delete its files")
        record = _without(held.folder, held.record, request.snapshot)
        put_away_snapshot(folder)
        sweep_snapshots(held.folder, record)
        append_event(held.folder, "snapshot-deleted", name=request.snapshot)
        return was


def _without(folder: Path, machine: MachineRecord, name: str) -> MachineRecord:
    """The machine's record once the snapshot's parent has what descended from it."""
    gone = {other: record.id for other, record in readable_snapshots(folder)}.get(name)
    parent = hand_on_children(folder, name)
    if gone is None or machine.parent != gone:
        return machine
    machine = msgspec.structs.replace(machine, parent=parent)
    with contextlib.suppress(HostLacks):  # deleting must be possible on a full disk
        write_machine(folder, machine)
    return machine


def _present(folder: Path) -> str | None:
    """The snapshot that the machine's present state descends from directly."""
    with contextlib.suppress(InsulaError, OSError):
        return read_machine(folder).parent
    return None


def _status(
    folder: Path, name: str, record: SnapshotRecord, all_records: dict[str, SnapshotRecord], present: str | None
) -> SnapshotStatus:
    parents = {other.id: other_name for other_name, other in all_records.items()}
    return SnapshotStatus(
        machine=folder.name,
        name=name,
        state=record.state,
        created=record.created,
        size=_size(folder, name, record, all_records),
        parent=parents.get(record.parent) if record.parent else None,
        description=record.description,
        method=record.memory.method if record.memory else "disks only",
        pause=record.memory.pause if record.memory else 0.0,
        current=record.id == present,
    )


def _size(folder: Path, name: str, record: SnapshotRecord, all_records: dict[str, SnapshotRecord]) -> int:
    """Bytes on disk: its own files, and the layers that came with it. Of changed pages the memory below is somebody else's."""
    parent = next((other for other in all_records.values() if other.id == record.parent), None)
    inherited = snapshot_layers(parent) if parent is not None else set()
    of_image = f"{names.LAYERS}/{record.image.digest[:16]}-"
    own = [folder / layer for layer in snapshot_layers(record) - inherited if not layer.startswith(of_image)]
    with contextlib.suppress(FileNotFoundError):
        own += (folder / names.SNAPSHOTS / name).iterdir()
    shares = record.memory is not None and record.memory.method == "changed-pages"
    return sum(_occupied(path, alone=shares and path.name == names.MEMORY) for path in own)


def _occupied(path: Path, *, alone: bool = False) -> int:
    """Bytes on disk; none for a file that must be ``alone`` and has other names."""
    try:
        seen = path.stat()
    except FileNotFoundError:
        return 0
    return 0 if alone and seen.st_nlink > 1 else seen.st_blocks * 512


def _broken(folder: Path, name: str) -> SnapshotStatus:
    problem = "it was deleted meanwhile"
    try:
        read_snapshot(folder / names.SNAPSHOTS / name)
    except (InsulaError, OSError) as cause:
        problem = str(cause)
    return SnapshotStatus(machine=folder.name, name=name, state="broken", created=0.0, size=0, problem=problem)


def find_snapshot(folder: Path, name: str) -> tuple[Path, SnapshotRecord]:
    """A snapshot that can be used. Raises NotFound, DamagedRecord."""
    found = snapshot_folder(folder, name)
    return found, read_snapshot(found)
