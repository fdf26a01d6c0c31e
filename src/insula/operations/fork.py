"""Fork: new running machines from a snapshot, or from a running machine as it is now.

    (take its state) → per child: link layers, memory and devices; new heads; new identity → load → awaken

A child shares memory and disks with what it was forked from, copy on write, and nothing else: see model/identity.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from insula.disks.layers import link_layer
from insula.disks.overlays import create_overlay
from insula.disks.verify import ensure_sums
from insula.errors import AlreadyExists, HostLacks, InsulaError, UsageError, WrongState
from insula.host.files import fleeting, remove_tree
from insula.model.names import check_machine_name
from insula.model.requests import DeleteMachine, ForkMachine
from insula.model.status import MachineStatus
from insula.model.units import MIB, format_size
from insula.operations import journal
from insula.operations.awaken import awaken, load
from insula.operations.capture import captured
from insula.operations.context import Context
from insula.operations.delete import delete
from insula.operations.hold import hold_machine, status_of
from insula.operations.identities import own_identity
from insula.operations.lease import Lease, take_lease
from insula.operations.operation import Operation, Steps
from insula.operations.settle import settle_locked
from insula.operations.snapshot import find_snapshot
from insula.operations.stop import pull_plug
from insula.store import names
from insula.store.events import append_event
from insula.store.machines import (
    RECORD_VERSION,
    DiskRecord,
    ImageUse,
    MachineRecord,
    new_machine_folder,
    publish_machine,
    read_machine,
    write_machine,
)
from insula.store.snapshots import SnapshotRecord, snapshot_layers

# What a fork was seen to take before it does anything: QEMU itself, its translated code, the first pages of its own.
_LEAST_EACH: Final = 64 * MIB
MOST_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class Origin:
    """What is forked: the ``machine`` folder that holds the layers, the ``folder`` with memory and devices, and their record."""

    machine: Path
    folder: Path
    record: SnapshotRecord


@dataclass(frozen=True, slots=True)
class ForkResult:
    """The machines made; for attached ones also, in the same order, the leases they live by: closing one ends its machine."""

    machines: list[MachineStatus]
    leases: list[Lease]


def fork(context: Context, request: ForkMachine, operation: Operation) -> ForkResult:
    """Fork ``count`` machines. When one cannot be made none is left, and the parent is as it was.

    Raises NotFound, WrongState, Busy, UsageError, AlreadyExists, HostLacks (``no_memory``, ``no_space``), MachineEnded and
    AgentAbsent.
    """
    wanted = _names(context, request)
    with _origin(context, request, operation) as origin:
        check_room(request.count)
        operation.tell(f"make {request.count} forks" if request.count > 1 else f"make {wanted[0]}")
        return _make_all(context, request, wanted, origin)


def _names(context: Context, request: ForkMachine) -> list[str]:
    """The children's names: those asked for, or the first free numbers."""
    pattern = request.pattern or f"{request.name}-{{n}}"
    if not 1 <= request.count <= MOST_AT_ONCE:
        raise UsageError(f"{request.count} forks at once is not possible", code="bad_count", hint=f"ask for 1 to {MOST_AT_ONCE}")
    if "{n}" not in pattern and request.count > 1:
        raise UsageError("several forks need several names", code="bad_name", hint="put {n} into the name: --name web-{n}")
    check_machine_name(pattern.replace("{n}", "1"))
    if "{n}" not in pattern:
        if context.home.machine(pattern).exists():
            raise AlreadyExists(f"the name '{pattern}' is taken", code="name_taken", hint="choose another")
        return [pattern]
    found: list[str] = []
    number = 0
    while len(found) < request.count:
        number += 1
        name = pattern.replace("{n}", str(number))
        if not context.home.machine(name).exists():
            check_machine_name(name)
            found.append(name)
    return found


@contextlib.contextmanager
def _origin(context: Context, request: ForkMachine, operation: Operation) -> Iterator[Origin]:
    """The state to fork, held until the children exist."""
    if request.snapshot:
        with hold_machine(context, request.name, "fork snapshot") as held:
            folder, record = find_snapshot(held.folder, request.snapshot)
            check_loadable(context, f"{request.name}@{request.snapshot}", record)
            ensure_sums(held.folder, folder, record.sums)
            yield Origin(held.folder, folder, record)
        return
    with hold_machine(context, request.name, "fork") as held, captured(context, held, operation, lasting=False) as state:
        journal.clear(held.folder)
        yield Origin(held.folder, state.folder, state.record)


def check_loadable(context: Context, name: str, record: SnapshotRecord) -> None:
    """Raises WrongState when the snapshot holds no memory, HostLacks when this host cannot go on from it."""
    if record.memory is None or record.board is None:
        raise WrongState(
            f"{name} holds no memory: the machine was stopped",
            code="no_memory_in_snapshot",
            hint="restore it, then start the machine",
        )
    here = context.engine.choose_board(record.arch, record.board)
    for what, theirs, ours in (
        ("accelerator", record.board.accelerator, here.accelerator),
        ("CPU model", record.board.cpu, here.cpu),
        ("machine type", record.board.machine, here.machine),
    ):
        if theirs != ours:
            raise HostLacks(
                f"{name} cannot go on here: its {what} is {theirs}, this host's is {ours}",
                code="snapshot_not_loadable",
                hint="restore its disks alone on a machine that is stopped, or use the host it was taken on",
            )


def check_room(count: int) -> None:
    """Raises HostLacks (``no_memory``) saying how many forks fit."""
    from insula.host.memory import available_bytes

    available = available_bytes()
    if count * _LEAST_EACH > available:
        fit = available // _LEAST_EACH
        needed = format_size(count * _LEAST_EACH)
        raise HostLacks(
            f"{count} forks need {needed} of memory at least; this host has {format_size(available)} available",
            code="no_memory",
            hint=f"{fit} would fit" if fit else "stop other machines first",
        )


def _make_all(context: Context, request: ForkMachine, wanted: list[str], origin: Origin) -> ForkResult:
    made: list[str] = []
    leases: dict[str, Lease] = {}

    def make(name: str) -> MachineStatus:
        operation = Operation("fork", name)
        with forked(context, origin, name, operation, ephemeral=request.ephemeral) as folder:
            made.append(name)
            lease = set_going(context, folder, origin.record, operation, request.timeout)
            if request.attached:
                leases[name] = lease
            else:
                lease.release()
            return status_of(folder)

    try:
        # As many at a time as there are CPUs to make them: more would only wait for each other.
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            machines = list(pool.map(make, wanted))
        return ForkResult(machines, [leases[name] for name in wanted if name in leases])
    except BaseException:
        for lease in leases.values():
            lease.close()
        for name in made:
            with contextlib.suppress(InsulaError):
                delete(context, DeleteMachine(name=name, force=True), Operation("delete", name))
        raise


@contextlib.contextmanager
def forked(
    context: Context, origin: Origin, name: str, operation: Operation, *, ephemeral: bool = False, image: ImageUse | None = None
) -> Iterator[Path]:
    """The folder of a new machine that is to go on from ``origin``, its lock being ours. When this is left nothing needs the
    origin any more. An ephemeral one begins with a journal: until whoever makes it lets it go on, it goes when he dies."""
    with fleeting(ephemeral), new_machine_folder(context.home, operation.verb) as staged:
        record = _fill(staged, origin, ephemeral)
        journal.note(staged, "fork", "load its state")
        with own_identity(context.home) as identity:
            mine = msgspec.structs.replace(record, id=identity.uuid, identity=identity, image=image or record.image)
            write_machine(staged, mine)
            folder = publish_machine(context.home, staged, name)
        append_event(folder, "forked", origin=_title(context, origin), snapshot=origin.record.id)
        yield folder


def _title(context: Context, origin: Origin) -> str:
    """``web@snap1``; ``web`` when its state was taken for this alone."""
    if origin.machine.parent == context.home.warm:
        return f"the warm state of {origin.record.image.name}"
    return origin.machine.name if origin.folder.name.startswith(".") else f"{origin.machine.name}@{origin.folder.name}"


def _fill(staged: Path, origin: Origin, ephemeral: bool) -> MachineRecord:
    """All of a machine's files but its record, which is returned and has no identity of its own yet."""
    for place in (names.DISKS, names.LAYERS, names.ORIGIN):
        (staged / place).mkdir(mode=0o700)
    state = origin.record
    for path in sorted(snapshot_layers(state)):
        link_layer(origin.machine / path, staged / path)
    for file in (names.MEMORY, names.STATE):
        if (origin.folder / file).exists():
            link_layer(origin.folder / file, staged / names.ORIGIN / file)
    disks = []
    for disk in state.disks:
        head = f"{names.DISKS}/{disk.name}-0.qcow2"
        create_overlay(staged / head, disk.size)
        disks.append(DiskRecord(name=disk.name, layers=disk.layers, head=head, size=disk.size))
    record = MachineRecord(
        version=RECORD_VERSION, id="", kind="vm", created=time.time(), image=state.image, spec=state.spec,
        identity=state.identity, boot=state.boot, disks=disks, arch=state.arch, ephemeral=ephemeral, board=state.board,
        sums={path: state.sums[path] for path in snapshot_layers(state) if path in state.sums},
    )  # fmt: skip
    if (origin.folder / names.VARIABLES).exists():
        (staged / names.FIRMWARE).mkdir(mode=0o700)
        shutil.copyfile(origin.folder / names.VARIABLES, staged / record.variables)
    return record


def set_going(context: Context, folder: Path, state: SnapshotRecord, operation: Operation, timeout: float) -> Lease:
    """Load a fork's state and let it go on as somebody else. Until the lease is released the machine ends with its holder:
    none ever goes on as its own twin because a verb died."""
    record = read_machine(folder)
    assert state.memory is not None
    with Steps(operation) as steps:
        steps.begin("load its state")
        steps.undo(lambda: _end(context, folder))
        load(context, folder, record, folder / names.ORIGIN, state.memory)
        lease = take_lease(folder)
        append_event(folder, "started", way="fork")
        remove_tree(folder / names.ORIGIN)  # QEMU has mapped what it needs
        steps.begin("tell the guest who it is")
        awaken(context, folder, record, timeout, state.identity)
    journal.clear(folder)
    return lease


def _end(context: Context, folder: Path) -> None:
    pull_plug(folder)
    settle_locked(context.home, folder, keep_ephemeral=True)
