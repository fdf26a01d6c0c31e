"""Suspend: memory to disk, machine off; its next start goes on from there.

    take its state, the guest left standing → QEMU ends → the state is called `suspended`

It gets that name only when nobody can write to the machine's disks any more. See docs/snapshots.md.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from insula.disks.verify import ensure_sums
from insula.errors import DamagedRecord, InsulaError, WrongState
from insula.host.files import fsync_file, fsync_folder, remove_tree
from insula.model.requests import SuspendMachine
from insula.model.status import MachineStatus
from insula.operations import journal
from insula.operations.admit import admit, board_of
from insula.operations.awaken import awaken, loaded
from insula.operations.capture import Captured, captured
from insula.operations.cards import are_elsewhere, slots_of, with_cards
from insula.operations.context import Context
from insula.operations.hold import hold_machine, status_of
from insula.operations.operation import Operation, Steps
from insula.operations.origin import check_loadable
from insula.operations.ports import reopen_ports
from insula.operations.recover import recover
from insula.operations.settle import settle_locked
from insula.operations.stop import pull_plug
from insula.operations.unjailed import say_lacking
from insula.store import names
from insula.store.due import Due, clear_due, note_due
from insula.store.events import append_event
from insula.store.machines import MachineRecord, as_launched, write_machine
from insula.store.snapshots import PUBLISH, SnapshotRecord, complete_snapshot, finish_publishing, read_snapshot, sweep_snapshots

_OBEDIENCE = 8.0


def suspend(context: Context, request: SuspendMachine, operation: Operation) -> MachineStatus:
    """Suspend a running or paused machine; on return its processes are gone and its state is on the disk.

    Raises NotFound, WrongState, Busy, HostLacks (``no_space``), MachineEnded; then the machine is as it was.
    """
    with hold_machine(context, request.name, "suspend") as held:
        operation.unchanged = held.already
        if held.already:
            return held.status
        if held.record.ephemeral:
            raise WrongState(f"{request.name} is deleted when it ends, so it cannot be suspended", code="ephemeral")
        with Steps(operation) as steps, captured(context, held, operation, go_on=False) as state:
            steps.undo(lambda: recover(context, held.folder))
            _complete(state)
            operation.tell("end QEMU")
            if (held.folder / held.record.variables).exists():
                fsync_file(held.folder / held.record.variables)
            state.let_go()
            journal.note(held.folder, "suspend", PUBLISH)  # from here on recovery ends QEMU, too
            end_quietly(held.folder)
            settle_locked(context.home, held.folder)
            finish_publishing(held.folder, "suspend", PUBLISH)
        append_event(held.folder, "suspended")
        journal.clear(held.folder)
        return status_of(held.folder)


def end_quietly(folder: Path) -> None:
    """End a QEMU whose guest stands and whose state is kept."""
    from insula.guest.keeper import quit_machine
    from insula.guest.link import open_link

    with contextlib.suppress(InsulaError), open_link(folder / names.RUN) as link:
        quit_machine(link, "quit", timeout=_OBEDIENCE)
    pull_plug(folder)


def _complete(taken: Captured) -> None:
    disks = [
        msgspec.structs.replace(state, head=disk.head)
        for state, disk in zip(taken.record.disks, taken.machine.disks, strict=True)
    ]
    complete_snapshot(taken.folder, msgspec.structs.replace(taken.record, disks=disks))


def is_suspended(folder: Path) -> bool:
    return (folder / names.SUSPENDED).is_dir()


def wake(context: Context, folder: Path, record: MachineRecord, operation: Operation, timeout: float) -> None:
    """Let a suspended machine go on; the caller holds its lock. Raises as `start`, and DamagedRecord (``suspended_stale``)."""
    place = folder / names.SUSPENDED
    state = read_snapshot(place)
    _check(context, folder, record, state, operation)
    assert state.memory is not None
    with Steps(operation) as steps:
        steps.undo(lambda: journal.clear(folder))
        steps.begin("load its memory")
        journal.note(folder, "wake", "load its memory")
        record = as_launched(folder, record)
        if record.spec.networks and not record.nics:  # of a version that did not write its cards down
            record = with_cards(context, record, slots_of(state))
            write_machine(folder, record)
        steps.undo(lambda: _end(context, folder))
        due = Due(state.former(record.identity), stands=False, moved=are_elsewhere(record, state))
        with loaded(context, folder, record, place, state.memory):
            note_due(folder / names.RUN, due)
            steps.begin("let it go on")
        gone = give_up(folder)  # nobody ends QEMU for our death any more: what it has loaded is nowhere else from here on
    append_event(folder, "started", way="suspended")
    say_lacking(folder, record, operation)
    reopen_ports(context, folder.name, record)
    try:
        awaken(context, folder, record, timeout, due.former, on_drop="resume", moved=due.moved)
        clear_due(folder / names.RUN)
    except BaseException:
        with contextlib.suppress(Exception):  # there is no way back: whatever is wrong with its agent, the guest goes on
            recover(context, folder)
        raise
    remove_tree(gone)
    sweep_snapshots(folder, record)
    journal.clear(folder)


def give_up(folder: Path) -> Path:
    """Take the name from a suspended state, for good: the guest is about to go on, or to be another. Returns what to remove."""
    gone = folder / f"{names.GONE_PREFIX}{os.urandom(8).hex()}"
    (folder / names.SUSPENDED).rename(gone)
    fsync_folder(folder)
    return gone


def keep_suspended(folder: Path, description: str) -> None:
    """What a machine is suspended with becomes its snapshot `before-restore`, memory and all; the journal says ``publish``.

    It must not be taken anew: that would give the machine other heads than those its memory belongs to.
    """
    (folder / names.SNAPSHOTS).mkdir(mode=0o700, exist_ok=True)
    staged = folder / names.SNAPSHOTS / f"{names.NEW_PREFIX}{os.urandom(8).hex()}"
    (folder / names.SUSPENDED).rename(staged)
    fsync_folder(staged.parent)
    fsync_folder(folder)
    state = read_snapshot(staged)
    disks = [msgspec.structs.replace(disk, head=None) for disk in state.disks]
    complete_snapshot(staged, msgspec.structs.replace(state, disks=disks, description=description))
    finish_publishing(folder, "restore", PUBLISH)


def _check(context: Context, folder: Path, record: MachineRecord, state: SnapshotRecord, operation: Operation) -> None:
    cold = f"to boot it, and lose what its memory held: insula start --cold {folder.name}"
    # By the heads alone: layers may have been merged since.
    if [(disk.name, disk.head) for disk in record.disks] != [(disk.name, disk.head) for disk in state.disks]:
        raise DamagedRecord(
            f"the memory that {folder.name} was suspended with does not belong to its disks",
            code="suspended_stale",
            hint=cold,
        )
    check_loadable(context, folder.name, state, cold)
    admit(context, operation, state.hardware.total, board_of(context, state), cpus=state.hardware.used_cpus)
    ensure_sums(folder, folder / names.SUSPENDED, state.sums)


def _end(context: Context, folder: Path) -> None:
    pull_plug(folder)
    settle_locked(context.home, folder, keep_ephemeral=True)
