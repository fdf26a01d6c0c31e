"""Spares: forks made ahead. One is loaded and stands, with an identity of its own, and waits for a name; to take it is a rename.

They are refilled behind, by a process of their own, and are the first to go when memory is short.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from insula.errors import InsulaError, UsageError
from insula.host.files import remove_tree
from insula.host.process import leave
from insula.host.program import own_command
from insula.model.names import split_snapshot
from insula.model.requests import FillSpares, ListSpares, SetSpares
from insula.model.status import SpareStatus
from insula.operations import journal
from insula.operations.admit import Asked, board_of, check_room
from insula.operations.awaken import loaded, rehearse
from insula.operations.cabling import attached_keys, uncable
from insula.operations.cards import slots_of, with_cards, with_inner
from insula.operations.context import Context
from insula.operations.identities import own_identity
from insula.operations.lease import Lease, take_lease
from insula.operations.limiting import uphold
from insula.operations.observe import is_alive
from insula.operations.operation import Operation
from insula.operations.origin import Origin, Wishes, as_wished, fill_fork, link_memory, named_origin
from insula.operations.settle import end_by_force
from insula.store import names
from insula.store.locks import only_one
from insula.store.machines import new_machine_folder, publish_machine, read_machine, write_machine
from insula.store.networks import release_claims
from insula.store.snapshots import SnapshotRecord, read_snapshot
from insula.store.spares import (
    Wanted,
    forget_origin,
    read_wanted,
    spare_folders,
    spare_origins,
    write_wanted,
)

MOST: Final = 64
_VERSION: Final = 1
_PATIENCE: Final = 60.0  # seconds for a guest to come to itself


def set_count(context: Context, request: SetSpares, operation: Operation) -> SpareStatus:
    """Have ``count`` spares of an image's warm state or of a snapshot from now on; on return they are there, or gone.

    Raises UsageError, NotFound, HostLacks (``no_memory``: the hint says how many fit), and what making a warm state or a fork
    raises.
    """
    if not 0 <= request.count <= MOST:
        raise UsageError(f"{request.count} spares are not possible", code="bad_count", hint=f"ask for 0 to {MOST}")
    origin, title = _resolve(context, request, operation)
    key = origin.record.id
    _check_room(context, origin.record, request.count)
    write_wanted(context.home, key, Wanted(_VERSION, request.count, title, str(origin.machine), str(origin.folder)))
    fill(context, FillSpares(origin=key), operation)
    return _status(context, key)


def _resolve(context: Context, request: SetSpares, operation: Operation) -> tuple[Origin, str]:
    from insula.operations.image import find_or_build
    from insula.operations.warm import warm_origin

    machine, snapshot = split_snapshot(request.origin)
    if snapshot:
        return named_origin(context, machine, snapshot), request.origin
    image = find_or_build(context, request.origin, operation)
    return warm_origin(context, request.origin, image, request.spec, operation), request.origin


def fill(context: Context, request: FillSpares, operation: Operation) -> None:
    """Make as many spares of a state as are wanted, end those too many, and those whose state is gone."""
    home = context.home
    home.prepare()
    with only_one(home.host / f"spares-{request.origin}.lock"):
        wanted = read_wanted(home, request.origin)
        living = [folder for folder in spare_folders(home, request.origin) if _lives(context, folder)]
        record = None
        if wanted is not None and wanted.count:
            with contextlib.suppress(InsulaError, OSError):
                record = read_snapshot(Path(wanted.snapshot))
        if wanted is None or record is None or record.id != request.origin:
            for folder in living:
                end_nameless(context, folder)
            forget_origin(home, request.origin)
            return
        for folder in living[wanted.count :]:
            end_nameless(context, folder)
        _check_room(context, record, wanted.count)
        for number in range(len(living), wanted.count):
            operation.tell(f"make spare {number + 1} of {wanted.count}")
            _make(context, Origin(Path(wanted.machine), Path(wanted.snapshot), record))


def _check_room(context: Context, record: SnapshotRecord, count: int) -> None:
    """Raises HostLacks (``no_memory``) when so many spares are too many: all of them, or none more."""
    missing = count - len(spare_folders(context.home, record.id))
    if missing > 0:
        whose = "spares" if missing > 1 else "the spare"
        check_room(context, Asked(record.hardware.total, board_of(context, record), missing, whose))


def _make(context: Context, origin: Origin) -> None:
    assert origin.record.memory is not None
    with new_machine_folder(context.home, "spare") as staged:
        record = fill_fork(staged, origin, ephemeral=False)
        link_memory(staged, origin)
        with own_identity(context.home) as identity:
            record = msgspec.structs.replace(record, id=identity.uuid, identity=identity)
            record = with_cards(context, record, slots_of(origin.record))
            record = record if record.boot.agent else with_inner(context, record, origin.record)
            write_machine(staged, record)
        lease: Lease | None = None
        try:
            with loaded(context, staged, record, staged / names.ORIGIN, origin.record.memory):
                lease = take_lease(staged)  # until it has its place: nobody would find it where it is
            remove_tree(staged / names.ORIGIN)
            rehearse(context, staged, record, _PATIENCE, origin.record.identity)
            staged.rename(context.home.spares / origin.record.id / os.urandom(8).hex())
        except BaseException:
            if lease is not None:
                lease.close()
            end_nameless(context, staged)
            raise
        lease.release()


def _lives(context: Context, folder: Path) -> bool:
    """Whether it can be taken; one that cannot, because its QEMU ended or the host started anew, goes."""
    if is_alive(folder):
        return True
    _remove(context, folder)
    return False


def end_nameless(context: Context, folder: Path) -> None:
    """End and remove a spare, or a fork that never got its name."""
    with contextlib.suppress(InsulaError):
        end_by_force(folder)
    _remove(context, folder)


def _remove(context: Context, folder: Path) -> None:
    """Its QEMU has ended; so do its cards, and their claims."""
    with contextlib.suppress(InsulaError, OSError):
        record = read_machine(folder)
        uncable(context.home, record)
        release_claims(context.home, record.id)
    remove_tree(folder)


@contextlib.contextmanager
def taken(context: Context, origin: Origin, name: str, *, ephemeral: bool, wishes: Wishes | None) -> Iterator[Path | None]:
    """A spare of ``origin`` that is the machine ``name`` from now on, its lock being ours; None when there is none.

    Raises AlreadyExists.
    """
    for folder in spare_folders(context.home, origin.record.id):
        lock = _lock(folder)
        if lock is None:
            continue
        try:
            if not _lives(context, folder):
                continue
            record = read_machine(folder)
            if wishes is not None and (wishes.networks != record.spec.networks or any(wishes.addresses)):
                continue  # its cards hang elsewhere
            if {nic.key for nic in record.nics} - set(attached_keys(context)):
                end_nameless(context, folder)  # its networks were taken down and made anew without it
                continue
            parent = read_machine(origin.machine)  # as it is by now
            mine = msgspec.structs.replace(
                record, created=time.time(), ephemeral=ephemeral, firewall=parent.firewall, limits=parent.limits.inherited,
                insecure=parent.insecure,
            )  # fmt: skip
            mine = as_wished(mine, wishes)
            write_machine(folder, mine)
            journal.note(folder, "fork", "give it its name")
            if mine.limits != record.limits:
                uphold(context, folder, mine, record)
            yield publish_machine(context.home, folder, name)
            return
        finally:
            os.close(lock)
    yield None


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the spare's lock; None when somebody else takes it just now, or did."""
    try:
        descriptor = os.open(folder / names.LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (folder / names.LOCK).exists():
            return descriptor
    os.close(descriptor)
    return None


def refill_behind(context: Context, origin: str) -> None:
    """Have the spares that were taken made anew, by a process that nobody waits for."""
    wanted = read_wanted(context.home, origin)
    if wanted is not None and len(spare_folders(context.home, origin)) < wanted.count:
        leave(own_command("_spares", str(context.home.root), origin))


def give_back(context: Context, folder: Path) -> bool:
    """End a spare, because memory or room is short; whether that was done: not while somebody takes it. It is made anew when one
    of its kind is next asked for."""
    lock = _lock(folder)
    if lock is None:
        return False
    try:
        end_nameless(context, folder)
    finally:
        os.close(lock)
    return True


def list_spares(context: Context, request: ListSpares, operation: Operation) -> list[SpareStatus]:
    """What spares are wanted, and how many there are."""
    del request, operation
    return [_status(context, origin) for origin in spare_origins(context.home) if read_wanted(context.home, origin)]


def _status(context: Context, origin: str) -> SpareStatus:
    wanted = read_wanted(context.home, origin)
    if wanted is None:
        return SpareStatus("", 0, 0)
    ready = sum(is_alive(folder) for folder in spare_folders(context.home, origin))
    return SpareStatus(wanted.title, wanted.count, ready)
