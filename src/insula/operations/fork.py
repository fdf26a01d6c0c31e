"""Fork: new running machines from a snapshot, or from a running machine as it is now.

    (take its state) → per child: link layers, memory and devices; new heads; new identity → load → awaken

A child shares memory and disks with what it was forked from, copy on write, and nothing else: see model/identity.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from insula.errors import AlreadyExists, InsulaError, MachineEnded, UsageError
from insula.host.files import fleeting, remove_tree
from insula.model.names import check_machine_name
from insula.model.requests import DeleteMachine, ForkMachine
from insula.model.status import MachineStatus
from insula.operations import journal
from insula.operations.admit import admit, board_of
from insula.operations.ahead import Ahead, write_newborn
from insula.operations.awaken import awaken, loaded
from insula.operations.cabling import await_cards, change_cards
from insula.operations.capture import captured
from insula.operations.context import Context
from insula.operations.delete import delete
from insula.operations.hold import hold_machine, status_of
from insula.operations.identities import own_identity
from insula.operations.lease import Lease, take_lease
from insula.operations.merge import merge_behind, merge_first
from insula.operations.operation import Operation, Steps
from insula.operations.origin import Origin, Wishes, fill_fork, link_memory, named_origin, shared_by
from insula.operations.ports import open_ports
from insula.operations.promises import check_disk
from insula.operations.settle import settle_locked
from insula.operations.spare import refill_behind, taken
from insula.operations.stop import pull_plug
from insula.operations.unjailed import say, say_lacking
from insula.store import names
from insula.store.events import append_event
from insula.store.machines import (
    MachineRecord,
    new_machine_folder,
    publish_machine,
    read_machine,
    remove_machine_folder,
)
from insula.store.snapshots import SnapshotRecord

if TYPE_CHECKING:
    from insula.operations.hanging import Hanging

MOST_AT_ONCE: Final = 1000


class ForkResult(msgspec.Struct, frozen=True):
    """The machines made; for attached ones also, in the same order, the leases they live by: closing one ends its machine."""

    machines: list[MachineStatus]
    leases: list[Lease]


def fork(context: Context, request: ForkMachine, operation: Operation) -> ForkResult:
    """Fork ``count`` machines. When one cannot be made none is left, and the parent is as it was.

    Raises NotFound, WrongState, Busy, UsageError, AlreadyExists, HostLacks (``no_memory``, ``no_space``), MachineEnded and
    AgentAbsent.
    """
    wanted = _names(context, request)
    with contextlib.ExitStack() as stack:
        ahead = None
        if not request.snapshot and len(wanted) == 1:
            machine = context.home.machine(request.name)
            ahead = stack.enter_context(Ahead(context, machine, wanted[0], ephemeral=request.ephemeral))
        origin = stack.enter_context(_origin(context, request, operation, ahead))
        operation.tell(f"make {request.count} forks" if request.count > 1 else f"make {wanted[0]}")
        origin = stack.enter_context(shared_by(context, origin, len(wanted)))
        result = _make_all(context, request, wanted, origin, ahead)
    for made in result.machines:
        if made.unjailed:
            say(made.name, made.unjailed, operation)
    return result


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
def _origin(context: Context, request: ForkMachine, operation: Operation, ahead: Ahead | None) -> Iterator[Origin]:
    """The state to fork, held until the children exist; the one that is made ``ahead`` is begun meanwhile."""
    if request.snapshot:
        with hold_machine(context, request.name, "fork snapshot"):
            origin = named_origin(context, request.name, request.snapshot)
            _admit(context, request, origin.record, operation)
            yield origin
        return
    merge_first(context, request.name, Operation("merge", request.name))
    with hold_machine(context, request.name, "fork") as held:
        _admit(context, request, held.record, operation)
        with captured(context, held, operation, lasting=False, follower=ahead) as state:
            yield Origin(held.folder, state.folder, state.record)
        journal.clear(held.folder)
        merge_behind(context, state.machine)


def _admit(context: Context, request: ForkMachine, record: MachineRecord | SnapshotRecord, operation: Operation) -> None:
    """Before anything is done. Raises HostLacks (``no_memory``) saying how many forks fit."""
    whose = "forks" if request.count > 1 else "the fork"
    shape = record.hardware
    board, cpus = board_of(context, record), shape.used_cpus
    admit(context, operation, shape.total, board, count=request.count, whose=whose, cpus=cpus)
    disks = "forks' disks" if request.count > 1 else "the fork's disk"
    check_disk(context, operation, sum(disk.size for disk in record.disks), count=request.count, whose=disks)


def _make_all(context: Context, request: ForkMachine, wanted: list[str], origin: Origin, ahead: Ahead | None) -> ForkResult:
    made: list[str] = []
    leases: dict[str, Lease] = {}

    def make(name: str) -> MachineStatus:
        operation = Operation("fork", name)
        how = brought_up(context, origin, name, operation, request.timeout, ephemeral=request.ephemeral, ahead=ahead)
        with how as (folder, lease):
            made.append(name)
            if request.attached:
                leases[name] = lease
            else:
                lease.release()
            return status_of(folder)

    try:
        machines = [make(wanted[0])] if len(wanted) == 1 else _side_by_side(make, wanted)
        refill_behind(context, origin.record.id)
        return ForkResult(machines, [leases[name] for name in wanted if name in leases])
    except BaseException:
        for lease in leases.values():
            lease.close()
        for name in made:
            with contextlib.suppress(InsulaError):
                delete(context, DeleteMachine(name=name, force=True), Operation("delete", name))
        raise


def _side_by_side(make: Callable[[str], MachineStatus], wanted: list[str]) -> list[MachineStatus]:
    """As many at a time as there are CPUs to make them: more would only wait for each other."""
    from concurrent.futures import ThreadPoolExecutor  # takes long to load, and `run` needs none

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        return list(pool.map(make, wanted))


class Newborn(NamedTuple):
    """A fork that runs: its folder, whose lock is ours, and the lease it lives by until that is released."""

    folder: Path
    lease: Lease


@contextlib.contextmanager
def brought_up(
    context: Context,
    origin: Origin,
    name: str,
    operation: Operation,
    timeout: float,
    *,
    ephemeral: bool = False,
    wishes: Wishes | None = None,
    ahead: Ahead | None = None,
) -> Iterator[Newborn]:
    """A new machine that goes on from ``origin``: the one made ``ahead``, or a spare, when there is one. It lives by a lease, so
    that none ever goes on as its own twin because a verb died. When it cannot be set going there is none."""
    with fleeting(ephemeral):
        if ahead is not None and (made := ahead.finish(origin)) is not None:
            folder, life = made
            yield Newborn(folder, _set_going(context, folder, origin, operation, timeout, lease=life, coming=ahead.coming))
            return
    with fleeting(ephemeral), taken(context, origin, name, ephemeral=ephemeral, wishes=wishes) as spare:
        lease: Lease | None = None
        if spare is not None:
            with contextlib.suppress(MachineEnded):  # it died after it was looked at: as if there had been none
                lease = _set_going(context, spare, origin, operation, timeout, ready=True)
        if spare is not None and lease is not None:
            yield Newborn(spare, lease)
            return
        with _forked(context, origin, name, operation, ephemeral, wishes) as folder:
            yield Newborn(folder, _set_going(context, folder, origin, operation, timeout))


@contextlib.contextmanager
def _forked(
    context: Context, origin: Origin, name: str, operation: Operation, ephemeral: bool, wishes: Wishes | None
) -> Iterator[Path]:
    """The folder of a new machine that is to go on from ``origin``, its lock being ours. When this is left nothing needs the
    origin any more. An ephemeral one begins with a journal: until whoever makes it lets it go on, it goes when he dies."""
    with new_machine_folder(context.home, operation.verb) as staged:
        record = fill_fork(staged, origin, ephemeral=ephemeral)
        link_memory(staged, origin)
        with own_identity(context.home) as identity:
            write_newborn(context, staged, origin, record, identity, wishes)
            folder = publish_machine(context.home, staged, name)
        yield folder


def _title(context: Context, origin: Origin) -> str:
    """``web@snap1``; ``web`` when its state was taken for this alone."""
    if origin.machine.parent == context.home.warm:
        return f"the warm state of {origin.record.image.name}"
    return origin.machine.name if origin.folder.name.startswith(".") else f"{origin.machine.name}@{origin.folder.name}"


def _set_going(
    context: Context,
    folder: Path,
    origin: Origin,
    operation: Operation,
    timeout: float,
    *,
    ready: bool = False,
    lease: Lease | None = None,
    coming: Sequence[Hanging] = (),
) -> Lease:
    """Load a fork's state, and let it go on as somebody else. One that was made ahead is loaded already: it has a ``lease``, and
    perhaps cards that are ``coming``. A spare is loaded, and somebody else, too: it is ``ready``."""
    record, state = read_machine(folder), origin.record
    assert state.memory is not None
    hanging = [*coming]
    append_event(folder, "forked", origin=_title(context, origin), snapshot=state.id)
    with Steps(operation) as steps:
        steps.undo(lambda: _end(context, folder))
        if ready:
            lease = take_lease(folder)
        elif lease is None:
            steps.begin("load its state")
            with loaded(context, folder, record, folder / names.ORIGIN, state.memory, later=hanging):
                lease = take_lease(folder)
        remove_tree(folder / names.ORIGIN)  # QEMU has mapped what it needs
        append_event(folder, "started", way="fork")
        say_lacking(folder, record, operation)
        if ready:
            change_cards(context, folder.name, record)  # under its name, and behind its own firewall
        if record.published:
            await_cards(hanging)
            open_ports(context, folder.name, record, record.published)
        steps.begin("tell the guest who it is")
        awaken(context, folder, record, timeout, record.identity if ready else state.identity, coming=hanging)
    journal.clear(folder)
    return lease


def _end(context: Context, folder: Path) -> None:
    pull_plug(folder)
    if settle_locked(context.home, folder):
        remove_machine_folder(context.home, folder)
