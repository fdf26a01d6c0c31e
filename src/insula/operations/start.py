"""Start: boot a stopped machine.

    check the files → choose the board → launch (jail, keeper, QEMU) → wait for the agent → tell the guest who it is

Each step is noted in the journal before it is done. When a step fails, QEMU is ended and the machine is stopped as before.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from insula.errors import GuestError, HostLacks, MachineEnded
from insula.host.files import remove_tree
from insula.host.program import own_command
from insula.model.requests import StartMachine
from insula.model.spec import MachineSpec
from insula.model.status import MachineStatus, State
from insula.model.units import format_size
from insula.operations import journal
from insula.operations.addressing import ensure_addressed
from insula.operations.admit import admit, board_of, may_merge
from insula.operations.cabling import cabled
from insula.operations.cards import choose_board, wired
from insula.operations.context import Context
from insula.operations.failed_boot import Printed, explain
from insula.operations.hold import Held, hold_machine, status_of
from insula.operations.identify import guest_identity, wait_hook
from insula.operations.limiting import hold_back, placed
from insula.operations.merge import merge_behind
from insula.operations.operation import Operation, Steps
from insula.operations.ports import open_ports
from insula.operations.settle import settle_locked
from insula.operations.stop import pull_plug
from insula.operations.unjailed import say_lacking, with_leave
from insula.resources.groups import NOWHERE, Place
from insula.store import names
from insula.store.events import append_event
from insula.store.machines import MachineRecord, as_launched, write_machine

if TYPE_CHECKING:
    from insula.engines.base import DirectBoot, DiskBoot, LaunchPlan, LoadPlan, NicPlan


def start(context: Context, request: StartMachine, operation: Operation) -> MachineStatus:
    """Start a stopped machine; one that runs is left alone, but for waiting until it answers.

    Raises NotFound, Busy, WrongState, DamagedRecord, HostLacks, MachineEnded, AgentAbsent.
    """
    with hold_machine(context, request.name, "start") as held:
        operation.unchanged = held.already
        if held.already:
            if held.record.boot.agent and not held.status.agent and request.timeout > 0:
                operation.tell("wait until the guest answers")
                _wait_ready(context, held.folder, held.record, request.timeout)
            return status_of(held.folder)
        record = with_leave(held.folder, held.record, request.insecure)
        if held.status.state is State.SUSPENDED:
            _start_suspended(context, held._replace(record=record), request, operation)
        else:
            boot(context, held.folder, record, operation, request.timeout)
        merge_behind(context, record)
        return status_of(held.folder)


def _start_suspended(context: Context, held: Held, request: StartMachine, operation: Operation) -> None:
    from insula.operations.suspend import give_up, wake

    if not request.cold:
        wake(context, held.folder, held.record, operation, request.timeout)
        return
    gone = give_up(held.folder)
    boot(context, held.folder, held.record, operation, request.timeout)
    remove_tree(gone)


def boot(
    context: Context,
    folder: Path,
    record: MachineRecord,
    operation: Operation,
    timeout: float,
    launched: Callable[[], None] | None = None,
    introduce: bool = True,
) -> None:
    """Boot the machine in ``folder``; the caller holds its lock. ``launched`` is called as soon as its keeper lives.

    Without ``introduce`` the guest is not told who it is: it is to become many.
    """
    with Steps(operation) as steps:
        steps.undo(lambda: journal.clear(folder))
        _step(steps, folder, "check its files")
        check_files(context, folder, record)
        check_memory(record.spec)
        _step(steps, folder, "choose the board")
        record = _with_board(context, folder, record, balloon=introduce)
        admit(context, operation, record.spec.memory, board_of(context, record), cpus=record.spec.cpus, whole=True)
        record = as_launched(folder, record)
        _step(steps, folder, "start QEMU")
        printed = Printed(folder)
        steps.undo(lambda: _end(context, folder))  # before, not after: Ctrl-C may come between the two
        record = wired(context, folder, record)
        with placed(context, record) as place, cabled(context, folder.name, record) as nics:
            context.engine.launch(launch_plan(folder, record, nics, place=place, mergeable=may_merge(context)))
            hold_back(context, folder, record)
        append_event(folder, "started")
        say_lacking(folder, record, operation)
        open_ports(context, folder.name, record, record.published)
        if launched is not None:
            launched()
        if record.boot.agent and timeout > 0:
            _step(steps, folder, "wait until the guest answers")
            _wait_ready(context, folder, record, timeout, printed, introduce)
    journal.clear(folder)


def _step(steps: Steps, folder: Path, step: str) -> None:
    steps.begin(step)
    journal.note(folder, "start", step)


def _end(context: Context, folder: Path) -> None:
    pull_plug(folder)
    settle_locked(context.home, folder, keep_ephemeral=True)


def check_files(context: Context, folder: Path, record: MachineRecord) -> None:
    """Refuse to boot from files that are missing or not what was built. Raises DamagedRecord."""
    from insula.disks.layers import require_layers
    from insula.disks.verify import ensure_layers
    from insula.images.verify import stamps_path

    immutable = [path for disk in record.disks for path in disk.layers]
    immutable += [path for path in (record.boot.kernel, record.boot.initrd) if path]
    require_layers(folder, [*immutable, *(disk.head for disk in record.disks)])
    if set(immutable) <= set(record.sums):
        ensure_layers(folder, record.sums, stamps_path(context.home, record.image.digest))
    else:
        _check_image(context, record)


def _check_image(context: Context, record: MachineRecord) -> None:
    """For a machine whose record has no sums, being older than they: its layers are the files of its image, if that is there."""
    from insula.images.catalogue import find
    from insula.images.verify import ensure_verified

    with contextlib.suppress(FileNotFoundError):
        image = find(context.home, record.image.digest)
        if image is not None:
            ensure_verified(context.home, image)


def check_memory(spec: MachineSpec) -> None:
    """Raises HostLacks (``no_memory``) when no host like this could give the guest its memory; see `admit` for now."""
    from insula.host.memory import total_bytes

    if spec.memory > (total := total_bytes()):
        raise HostLacks(
            f"the machine asks for {format_size(spec.memory)} of memory; this host has {format_size(total)} in all",
            code="no_memory",
            hint="make it with less: --memory",
        )


def _with_board(context: Context, folder: Path, record: MachineRecord, *, balloon: bool) -> MachineRecord:
    """The record with the board of this start, written down when it is new. What was plugged in before is forgotten: it boots
    with what its spec says.

    Its memory is its own, so what the guest gives back can return to the host; not so where it will be shared with forks.
    """
    board = msgspec.structs.replace(choose_board(context, record.arch, record.board), balloon=balloon)
    if board != record.board or record.shape is not None:
        record = msgspec.structs.replace(record, board=board, shape=None)
        write_machine(folder, record)
    return record


def launch_plan(
    folder: Path,
    record: MachineRecord,
    nics: tuple[NicPlan, ...],
    load: LoadPlan | None = None,
    run: str = names.RUN,
    place: Place = NOWHERE,
    mergeable: bool = False,
) -> LaunchPlan:
    """The engine's view of a machine: pure, but for the absolute paths it makes."""
    from insula.engines.base import DiskPlan, LaunchPlan, LayerFile

    assert record.board is not None
    shape = record.hardware
    return LaunchPlan(
        name=folder.name,
        folder=folder,
        uuid=record.identity.uuid,
        generation=record.identity.generation,
        cpus=shape.cpus,
        memory=shape.memory,
        board=record.board,
        boot=_boot_plan(folder, record),
        disks=tuple(
            DiskPlan(
                name=f"disk{index}",
                head=LayerFile(folder / disk.head),
                layers=tuple(LayerFile(folder / layer) for layer in disk.layers),
                size=disk.size,
                serial=disk.name,
                unsafe=record.ephemeral,
            )
            for index, disk in enumerate(record.disks)
        ),
        nics=nics,
        display=record.spec.display,
        tpm=folder / record.tpm if record.spec.tpm else None,
        on_end=_settle_command(folder.parent.parent, record.id),
        load=load,
        present=shape.present,
        dimms=shape.dimms,
        run=run,
        group=place.leaf,
        insecure=record.insecure,
        entrances=place.entrances,
        mergeable=mergeable,
    )


def _boot_plan(folder: Path, record: MachineRecord) -> DiskBoot | DirectBoot:
    from insula.engines.base import DirectBoot, DiskBoot

    if record.boot.kind == "direct":
        assert record.boot.kernel is not None
        initrd = folder / record.boot.initrd if record.boot.initrd else None
        return DirectBoot(folder / record.boot.kernel, initrd, record.boot.cmdline)
    variables = folder / record.variables if record.spec.firmware == "uefi" else None
    return DiskBoot(record.spec.firmware, variables)


def _settle_command(home: Path, machine_id: str) -> tuple[str, ...]:
    """How the keeper calls this very Insula again when the machine has ended."""
    return own_command("_ended", str(home), machine_id)


def _wait_ready(
    context: Context,
    folder: Path,
    record: MachineRecord,
    timeout: float,
    printed: Printed | None = None,
    introduce: bool = True,
) -> None:
    """Wait for the agent, then tell the guest who it is if it is to be introduced to itself.

    Raises MachineEnded with the last words, AgentAbsent when late, GuestError (``guest_resets``) when it boots again and again.
    """
    from insula.guest.agent import set_identity
    from insula.guest.keeper import wait_agent
    from insula.guest.link import open_link

    printed = printed or Printed(folder)
    deadline = time.monotonic() + timeout
    try:
        with open_link(folder / names.RUN) as link:
            # Doing it twice changes nothing. It is put together while the guest boots.
            identity = guest_identity(context, folder.name, record) if introduce else None
            wait_agent(link, deadline - time.monotonic())
            if identity is not None:
                set_identity(link, identity)
                ensure_addressed(folder / names.RUN, record)
            wait_hook(link, deadline - time.monotonic())
    except (MachineEnded, GuestError) as cause:
        raise explain(folder, printed, cause, timeout) from cause
