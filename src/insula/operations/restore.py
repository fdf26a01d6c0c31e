"""Restore: back to a snapshot, in place, under the same name and identity.

    a second QEMU loads the snapshot on fresh heads and stands → what was is kept → the first one ends → the record names
    the fresh heads → the second takes its place → it goes on

The record changes when the old guest has ended and before the new one's first instruction. See docs/snapshots.md.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from insula.disks.overlays import create_overlay
from insula.disks.verify import ensure_sums
from insula.errors import InsulaError
from insula.host.files import fleeting, fsync_folder, remove_tree
from insula.host.together import Beside
from insula.model.requests import RestoreSnapshot
from insula.model.status import MachineStatus, State
from insula.operations import journal
from insula.operations.admit import admit, board_of
from insula.operations.awaken import awaken, loaded
from insula.operations.cabling import replace_cards, uncable
from insula.operations.capture import captured
from insula.operations.cards import are_elsewhere, release_former, with_restored_cards
from insula.operations.context import Context
from insula.operations.hold import Held, hold_machine, status_of
from insula.operations.merge import merge_behind
from insula.operations.observe import is_alive
from insula.operations.operation import Operation, Steps
from insula.operations.origin import check_loadable
from insula.operations.ports import reopen_ports
from insula.operations.recover import recover
from insula.operations.snapshot import find_snapshot
from insula.operations.suspend import end_quietly, give_up, is_suspended, keep_suspended
from insula.operations.unjailed import say_lacking
from insula.store import names
from insula.store.due import Due, clear_due, note_due
from insula.store.events import append_event
from insula.store.machines import DiskRecord, MachineRecord, staged_machine
from insula.store.snapshots import (
    PUBLISH,
    SnapshotRecord,
    complete_snapshot,
    finish_publishing,
    snapshot_layers,
    sweep_snapshots,
)
from insula.store.tpm import make_tpm

_ANSWER = 60.0


def restore(context: Context, request: RestoreSnapshot, operation: Operation) -> MachineStatus:
    """Bring a machine back. It runs then if it ran at the snapshot's instant, stands if it was paused, and is off if it was off,
    or only ``disks`` are asked for.

    Raises NotFound, DamagedRecord (a file was changed), HostLacks, Busy, MachineEnded; until the old guest has ended the
    machine is as it was.
    """
    with hold_machine(context, request.name, "restore") as held:
        place, state = find_snapshot(held.folder, request.snapshot)
        state = _off(state, held.record) if request.disks else state
        if state.memory is not None:
            check_loadable(context, f"{request.name}@{request.snapshot}", state)
            board, cpus = board_of(context, state), state.hardware.used_cpus
            admit(context, operation, state.hardware.total, board, replaces=held.record.id, cpus=cpus)
        operation.tell("check its files")
        ensure_sums(held.folder, place, state.sums)
        with Steps(operation) as steps:
            steps.undo(lambda: _take_off_if_ended(context, held))
            steps.undo(lambda: recover(context, held.folder))
            journal.note(held.folder, "restore", "make fresh heads", stands=held.status.state is State.PAUSED)
            record = _with_fresh_heads(context, held, state, place)
            _exchange(context, held, request, operation, record, place, state)
        release_former(context.home, held.record, record)
        append_event(held.folder, "restored", name=request.snapshot)
        journal.clear(held.folder)
        merge_behind(context, record)
        return status_of(held.folder)


def _off(state: SnapshotRecord, record: MachineRecord) -> SnapshotRecord:
    """Pure: the state as if the machine had been off at that instant; neither this host nor a file has anything to do with what
    its memory was."""
    sums = {path: known for path, known in state.sums.items() if path not in (names.MEMORY, names.STATE)}
    return msgspec.structs.replace(state, state="stopped", memory=None, shape=None, board=record.board, sums=sums)


def _with_fresh_heads(context: Context, held: Held, state: SnapshotRecord, place: Path) -> MachineRecord:
    """What the machine's record will be. The heads are on the disk; nobody names them yet."""
    token, disks = os.urandom(4).hex(), []
    for disk in state.disks:
        head = f"{names.DISKS}/{disk.name}-{token}.qcow2"
        create_overlay(held.folder / head, disk.size)
        disks.append(DiskRecord(name=disk.name, layers=disk.layers, head=head, size=disk.size))
    variables = held.record.variables
    if (place / names.VARIABLES).exists():
        variables = f"{names.FIRMWARE}/vars-{token}.fd"
        (held.folder / names.FIRMWARE).mkdir(mode=0o700, exist_ok=True)
        shutil.copyfile(place / names.VARIABLES, held.folder / variables)
        fsync_folder(held.folder / names.FIRMWARE)
    tpm = held.record.tpm
    if state.spec.tpm:
        tpm = f"{names.TPM}/{token}"
        make_tpm(held.folder / tpm, _tpm_state(place))
    record = msgspec.structs.replace(held.record, spec=state.spec, shape=state.shape)
    return msgspec.structs.replace(
        with_restored_cards(context, record, state), disks=disks, boot=state.boot, board=state.board, variables=variables,
        tpm=tpm,
        parent=state.id,
        sums={path: state.sums[path] for path in snapshot_layers(state) if path in state.sums},
    )  # fmt: skip


def _tpm_state(place: Path) -> bytes | None:
    """What a snapshot keeps of the machine's TPM; None when that was never switched on."""
    try:
        return (place / names.TPM).read_bytes()
    except FileNotFoundError:
        return None


def _exchange(
    context: Context,
    held: Held,
    request: RestoreSnapshot,
    operation: Operation,
    record: MachineRecord,
    place: Path,
    state: SnapshotRecord,
) -> None:
    folder = held.folder
    with contextlib.ExitStack() as stack:
        waiting = contextlib.ExitStack()
        if state.memory is not None:
            operation.tell("load its memory")
            stack.enter_context(_second(folder))
            stack.enter_context(waiting)
            waiting.enter_context(
                loaded(context, folder, record, place, state.memory, names.RUN_NEXT, beside=held.status.state.has_process)
            )
            due = Due(state.former(record.identity), stands=state.state == "paused", moved=are_elsewhere(record, state))
            with fleeting():  # no power cut leaves a guest that it is due to
                note_due(folder / names.RUN_NEXT, due)
        replace = stack.enter_context(staged_machine(folder, record))  # while there is a way back if the disk is full
        cards = Beside(lambda: replace_cards(context, folder.name, held.record, record))
        stack.callback(cards.join)
        _end_first(context, held, request, operation, cards if state.memory is not None else None, stands=state.state == "paused")
        if is_suspended(folder):
            stack.callback(remove_tree, give_up(folder))
        replace()
        if state.memory is None:
            uncable(context.home, held.record)
            sweep_snapshots(folder, record)
            return
        cards.wait()
        (folder / names.RUN_NEXT).rename(folder / names.RUN)
        waiting.close()
        sweeping = Beside(lambda: sweep_snapshots(folder, record))  # while the guest comes to itself
        stack.callback(sweeping.join)
        sweeping.begin()
        append_event(folder, "started", way="restored")
        say_lacking(folder, record, operation)
        reopen_ports(context, folder.name, record)
        if state.state == "running":
            operation.tell("let it go on")
            awaken(context, folder, record, _ANSWER, due.former, moved=due.moved)
            clear_due(folder / names.RUN)
        sweeping.wait()


def _take_off_if_ended(context: Context, held: Held) -> None:
    """Its cards stayed on their networks for those that were to take their places."""
    if not is_alive(held.folder):
        uncable(context.home, held.record)


@contextlib.contextmanager
def _second(folder: Path) -> Iterator[None]:
    """The second QEMU ends when this fails, wherever its run folder is by then."""
    from insula.guest.keeper import quit_machine
    from insula.guest.link import open_link

    try:
        yield
    except BaseException:
        run = folder / names.RUN_NEXT
        if run.exists():
            with contextlib.suppress(InsulaError), open_link(run) as link:
                quit_machine(link, "kill", timeout=_ANSWER)
            remove_tree(run)
        raise


def _end_first(
    context: Context,
    held: Held,
    request: RestoreSnapshot,
    operation: Operation,
    cards: Beside | None,
    *,
    stands: bool,
) -> None:
    """End the guest that runs, if one does, and keep what the machine was if that is wanted. ``cards``: the exchange of its cards
    for those of the next one, begun when its end is certain; that takes as long. ``stands``: whether the next one is to stand."""
    from insula.operations.settle import settle_locked

    folder, alive = held.folder, held.status.state.has_process
    if not request.keep:
        with fleeting():  # after a power cut nobody runs, and the journal says already that there is something to look at
            journal.note(folder, "restore", "end the guest that runs", stands=stands)
            if alive:
                _end_beside(folder, cards)
                settle_locked(context.home, folder, keep_ephemeral=True, keep_cards=True)
        return
    description = f"before {request.name}@{request.snapshot} was restored"
    if is_suspended(folder):
        journal.note(folder, "restore", PUBLISH)
        keep_suspended(folder, description)
        return
    with captured(context, held, operation, description=description, go_on=False) as was:
        complete_snapshot(was.folder, was.record)
        if alive:
            operation.tell("end the guest that runs")
        was.let_go()
        journal.note(folder, "restore", PUBLISH, stands=stands)  # from here on recovery ends QEMU, too
        if alive:
            _end_beside(folder, cards)
        finish_publishing(folder, "restore", PUBLISH)
        settle_locked(context.home, folder, keep_ephemeral=True, keep_cards=True)


def _end_beside(folder: Path, cards: Beside | None) -> None:
    """End the old QEMU. Giving back its memory takes a while; the cards, which it has no use for any more, go meanwhile."""
    if cards is not None:
        cards.begin()
    end_quietly(folder)
