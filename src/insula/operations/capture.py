"""Take a machine's state, all of one instant, into a folder that is not a snapshot yet. The order of steps is the design: see
docs/snapshots.md.

    new heads made, former heads linked as layers → the record names both → memory, devices, disks at one instant → sums
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

from insula.disks.layers import link_layer
from insula.disks.overlays import create_overlay
from insula.errors import InsulaError, MachineEnded
from insula.host.cpu import host_cpu
from insula.host.files import fsync_file, fsync_folder, remove_tree
from insula.model.shape import Shape, kept_shape
from insula.model.status import State
from insula.operations import journal
from insula.operations.context import Context
from insula.operations.hold import Held
from insula.operations.observe import TPM_ENDED
from insula.operations.operation import Operation
from insula.operations.squeeze import release_first
from insula.store import names
from insula.store.due import read_due
from insula.store.machines import MachineRecord, write_machine
from insula.store.snapshots import PUBLISH, SNAPSHOT_VERSION, DiskState, MemoryState, SnapshotRecord, stage_snapshot
from insula.store.sums import FileSum, Stamp, is_as_stamped, read_stamps, stamp_file, write_stamps
from insula.store.tpm import is_served, read_tpm

if TYPE_CHECKING:
    from insula.engines.base import NewHead, Saved

# Memory may be read by processes of machines forked from it alone: by their group where each has a user of its own.
_MEMORY_MODE = 0o440
_STATE_MODE = 0o400


class Captured(msgspec.Struct, frozen=True):
    """A state in ``folder``, complete and on the disk, and the ``record`` that makes a snapshot of it; ``machine`` is the
    machine's own record since then. ``let_go``: from then on a guest that was left standing stays so, even when we die."""

    folder: Path
    record: SnapshotRecord
    machine: MachineRecord
    let_go: Callable[[], None]


class Follower(Protocol):
    """Is told of a state, in the folder ``place``, while it is being taken. Neither call takes long, or raises."""

    def prepare(self, place: Path, state: SnapshotRecord) -> None:
        """It is about to be taken: ``state`` says all but how its memory is."""

    def begin(self, state: SnapshotRecord) -> None:
        """Its memory file can be mapped (see `SaveOrder.begun`): ``state`` says all but how long the guest stood."""


@contextlib.contextmanager
def captured(
    context: Context,
    held: Held,
    operation: Operation,
    *,
    description: str = "",
    go_on: bool = True,
    lasting: bool = True,
    follower: Follower | None = None,
) -> Iterator[Captured]:
    """Take the state of the machine whose lock the caller holds. What is not given a name by the end of the context is removed.

    With ``go_on`` false a running guest is left standing, and goes on when the context fails. ``lasting``: false for a state
    that nobody keeps: it is neither summed nor made sure to be on the disk, but for the layers, on which machines will rest.
    ``follower``: whoever wants to go on from a state while it is being taken; not asked for one that is taken without a process.
    When this fails the machine is as it was, but perhaps for one layer more. Raises HostLacks (``no_space``), MachineEnded,
    InsulaError.
    """
    folder, former = held.folder, held.record
    journal.note(folder, "capture", "take its state", stands=held.status.state is State.PAUSED)
    staged, identifier = stage_snapshot(folder), str(uuid.uuid4())
    holding = contextlib.ExitStack()
    try:
        operation.tell("make new heads")
        record = _with_new_heads(folder, former)
        write_machine(folder, record)
        describe = functools.partial(_describe, held, record, identifier=identifier, description=description)
        saved = None
        if held.status.state.has_process:
            if held.status.state is State.RUNNING:
                release_first(context, folder)  # what goes on from this state could not get it back
            operation.tell("write its memory")
            holding.enter_context(_resumed_if_we_die(held))
            if follower is not None:
                follower.prepare(staged, describe(None))
            saved = _save(context, held, record, staged, go_on, _beginning(staged, describe, follower) if follower else None)
            if go_on:
                holding.close()
        else:
            _copy_kept(folder, former, staged)
        operation.tell("make sure of it")
        _freeze(folder, former, record)
        shared = saved is not None and saved.method == "changed-pages"
        protect(staged, identifier, memory=not shared)
        sums = _sums(folder, record, staged, shared=shared) if lasting else {}
        yield Captured(staged, describe(saved, sums=sums), record, holding.close)
    except BaseException:
        if not go_on and held.status.state is State.RUNNING and not _is_kept(folder):
            with contextlib.suppress(InsulaError):
                context.engine.resume(folder / names.RUN)
        raise
    finally:
        holding.close()
        if not _is_kept(folder):
            remove_tree(staged)


def _beginning(staged: Path, describe: Callable[[Saved], SnapshotRecord], follower: Follower) -> Callable[[Saved], None]:
    """What is done when the memory file is there to be mapped: it gets the mode it will have."""

    def begin(saved: Saved) -> None:
        state = describe(saved)
        if saved.method != "changed-pages":
            protect_memory(staged / names.MEMORY, state.id)  # not the devices' file, which is yet to be written
        follower.begin(state)

    return begin


def _is_kept(folder: Path) -> bool:
    """Whether the journal says that the state is to get its name, so that only recovery may finish it from here on."""
    entry = journal.pending(folder)
    return entry is not None and entry.step == PUBLISH


def _with_new_heads(folder: Path, former: MachineRecord) -> MachineRecord:
    """The record with an empty head on each disk and the former head below it; the files are on the disk."""
    token = os.urandom(4).hex()
    disks = []
    for disk in former.disks:
        head, layer = f"{names.DISKS}/{disk.name}-{token}.qcow2", f"{names.LAYERS}/{disk.name}-{token}.qcow2"
        create_overlay(folder / head, disk.size)
        link_layer(folder / disk.head, folder / layer)
        disks.append(msgspec.structs.replace(disk, layers=[*disk.layers, layer], head=head))
    return msgspec.structs.replace(former, disks=disks)


def _save(
    context: Context, held: Held, record: MachineRecord, staged: Path, go_on: bool, begun: Callable[[Saved], None] | None
) -> Saved:
    """Write the machine's state. When that fails before the disks have switched, the record says again what it said.

    A QEMU that ended, or does not answer, is left with the new heads: empty, they mean the same, and the next verb sees to it.
    """
    from insula.engines.base import SaveOrder

    folder, board = held.folder, record.board
    assert board is not None
    heads = new_heads(folder, record)
    switched: list[bool] = []
    order = SaveOrder(
        uuid=record.identity.uuid,
        memory=staged / names.MEMORY,
        state=staged / names.STATE,
        machine=board.machine,
        size=record.hardware.memory,
        heads=heads,
        layers=former_heads(folder, record),
        at_instant=lambda: _copy_kept(folder, record, staged),
        switched=lambda: switched.append(True),
        go_on=go_on,
        begun=begun,
        must_have=() if context.engine.can_pull_cpus(board) else record.hardware.present,
    )
    try:
        return context.engine.save(folder / names.RUN, order)
    except MachineEnded:
        raise
    except BaseException as cause:
        if record.spec.tpm and not switched and not is_served(folder / record.tpm):
            _go_back(folder, held.record, record)
            raise InsulaError(f"the state of {folder.name} cannot be taken: {TPM_ENDED}", code="tpm_ended") from cause
        if not switched and getattr(cause, "code", "") != "monitor_timeout":
            _go_back(folder, held.record, record)
        raise


@contextlib.contextmanager
def _resumed_if_we_die(held: Held) -> Iterator[None]:
    from insula.guest.keeper import hold
    from insula.guest.link import open_link

    if held.status.state is State.PAUSED:
        yield
        return
    with open_link(held.folder / names.RUN) as link:
        one = hold(link, "resume")
        try:
            yield
        finally:
            with contextlib.suppress(InsulaError):  # its QEMU may have ended meanwhile, as it was meant to
                one.release()


def _go_back(folder: Path, former: MachineRecord, record: MachineRecord) -> None:
    """The record first, then the files: when the disk is so full that the record cannot be written, the new heads stay."""
    with contextlib.suppress(InsulaError):
        write_machine(folder, former)
        for disk in record.disks:
            (folder / disk.head).unlink()
            (folder / disk.layers[-1]).unlink()
        journal.clear(folder)


def new_heads(folder: Path, record: MachineRecord) -> tuple[NewHead, ...]:
    """The heads that ``record`` names, as QEMU is told of them."""
    from insula.engines.base import NewHead

    return tuple(NewHead(f"disk{n}", len(disk.layers) + disk.merged, folder / disk.head) for n, disk in enumerate(record.disks))


def former_heads(folder: Path, record: MachineRecord) -> dict[str, Path]:
    """The layers right below them, by disk."""
    return {f"disk{n}": folder / disk.layers[-1] for n, disk in enumerate(record.disks) if disk.layers}


def _copy_kept(folder: Path, record: MachineRecord, staged: Path) -> None:
    """What the machine itself keeps beside its disks: UEFI variables, and all of its TPM that outlives a reset."""
    if record.spec.firmware == "uefi":
        shutil.copyfile(folder / record.variables, staged / names.VARIABLES)
    if record.spec.tpm and (state := read_tpm(folder / record.tpm)) is not None:
        (staged / names.TPM).write_bytes(state)


def _freeze(folder: Path, former: MachineRecord, record: MachineRecord) -> None:
    """The former heads are layers now: nobody writes them, and they have one name in this folder.

    Their content is on the disk before their mode says so: a QEMU that died, or ran unsafe, flushed nothing.
    """
    for old, new in zip(former.disks, record.disks, strict=True):
        fsync_file(folder / new.layers[-1])
        (folder / new.layers[-1]).chmod(names.LAYER_MODE)
        with contextlib.suppress(FileNotFoundError):
            (folder / old.head).unlink()


def _describe(
    held: Held,
    record: MachineRecord,
    saved: Saved | None,
    *,
    identifier: str,
    description: str,
    sums: Mapping[str, FileSum] = MappingProxyType({}),
) -> SnapshotRecord:
    due = read_due(held.folder / names.RUN)
    return SnapshotRecord(
        version=SNAPSHOT_VERSION,
        id=identifier,
        created=time.time(),
        description=description,
        state=_state(held.status.state),
        parent=record.parent,
        image=record.image,
        spec=record.spec,
        identity=due.former if due is not None and due.former is not None else record.identity,
        nics=record.nics,
        shape=_shape(record, saved),
        host_cpu=host_cpu() if record.board is not None and record.board.cpu == "host" else "",
        boot=record.boot,
        arch=record.arch,
        board=record.board,
        disks=[DiskState(name=disk.name, layers=disk.layers, size=disk.size) for disk in record.disks],
        memory=None if saved is None else MemoryState(method=saved.method, offset=saved.offset, pause=saved.pause),
        sums=dict(sums),
    )


def _shape(record: MachineRecord, saved: Saved | None) -> Shape | None:
    """What the machine had when its state was taken: its guest may have let go of something that its record names. One that is
    off will boot with what its spec says."""
    if saved is None or saved.hardware is None:
        return None
    return kept_shape(record.spec, record.hardware.as_found(saved.hardware.cpus, saved.hardware.pieces))


def _state(state: State) -> Literal["running", "paused", "stopped"]:
    if not state.has_process:
        return "stopped"
    return "paused" if state is State.PAUSED else "running"


def protect(staged: Path, identifier: str, *, memory: bool = True) -> None:
    """Nobody writes these files again, and no other machine than those that load them may read them.

    ``memory`` false: that file is another state's, too, and protected already.
    """
    if memory and (staged / names.MEMORY).exists():
        protect_memory(staged / names.MEMORY, identifier)
    for name in (names.STATE, names.VARIABLES, names.TPM):
        if (staged / name).exists():
            (staged / name).chmod(_STATE_MODE)


def protect_memory(path: Path, identifier: str) -> None:
    """As `protect`, of the memory file alone."""
    from insula.isolation.uids import jail_ids

    group = jail_ids(identifier).machine
    if group is not None:
        os.chown(path, -1, group)
    path.chmod(_STATE_MODE if group is None else _MEMORY_MODE)


def _sums(folder: Path, record: MachineRecord, staged: Path, *, shared: bool) -> dict[str, FileSum]:
    """Sums of all that the snapshot rests on; every file made for it is on the disk."""
    known = read_stamps(folder / names.VERIFIED_LAYERS)
    stamps = {}
    for entry in sorted(staged.iterdir()):
        fsync_file(entry)
        base = shared and entry.name == names.MEMORY
        stamps[entry.name] = _stamp_base(folder, entry) if base else stamp_file(entry, sparse=entry.name == names.MEMORY)
    fsync_folder(staged)
    layers = [layer for disk in record.disks for layer in disk.layers]
    for path in (*layers, record.boot.kernel, record.boot.initrd):
        if path is not None:
            stamps[path] = _stamp(folder / path, known.get(path), record.sums.get(path))
    write_stamps(staged / names.VERIFIED_LAYERS, stamps)
    return {path: FileSum(stamp.size, stamp.sha256, path == names.MEMORY) for path, stamp in stamps.items()}


def _stamp_base(folder: Path, memory: Path) -> Stamp:
    """Of the file that the machine was loaded from: large, and hashed at most once."""
    note = folder / names.RUN / names.VERIFIED_LAYERS
    known = read_stamps(note).get(names.MEMORY)
    if known is not None and is_as_stamped(memory, known, FileSum(known.size, known.sha256, sparse=True)):
        return known
    stamp = stamp_file(memory, sparse=True)
    write_stamps(note, {names.MEMORY: stamp})
    return stamp


def _stamp(path: Path, known: Stamp | None, expected: FileSum | None) -> Stamp:
    """A file that was hashed before and looks as it did then is not hashed again."""
    if known is not None and expected is not None and is_as_stamped(path, known, expected):
        return known
    return stamp_file(path)
