"""What is forked: a state on disk, and the folder of a machine that is to go on from it."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from insula.disks.layers import link_layers
from insula.disks.overlays import create_overlay
from insula.disks.verify import ensure_sums
from insula.errors import HostLacks, InsulaError, WrongState
from insula.host.cpu import host_cpu
from insula.host.files import fleeting, remove_tree
from insula.model.limits import Limits
from insula.model.network import Firewall, Publish
from insula.operations.capture import protect
from insula.operations.cards import has_fabric
from insula.operations.context import Context
from insula.operations.snapshot import find_snapshot
from insula.store import names
from insula.store.machines import RECORD_VERSION, DiskRecord, ImageUse, MachineRecord, machine_folder, read_machine
from insula.store.snapshots import SnapshotRecord, snapshot_layers, stage_snapshot


class Origin(msgspec.Struct, frozen=True):
    """What is forked: the ``machine`` folder that holds the layers, the ``folder`` with memory and devices, and their record.
    ``shared``: where memory and devices put together for many are, see `shared_by`."""

    machine: Path
    folder: Path
    record: SnapshotRecord
    shared: Path | None = None


class Wishes(NamedTuple):
    """What a new machine is to have otherwise than the state it goes on from."""

    image: ImageUse
    networks: tuple[str, ...]
    addresses: tuple[str, ...]
    published: tuple[Publish, ...]
    firewall: Firewall
    limits: Limits
    insecure: bool


def as_wished(record: MachineRecord, wishes: Wishes | None) -> MachineRecord:
    """Pure: the record with what was wished for it, cards aside."""
    if wishes is None:
        return record
    spec = msgspec.structs.replace(record.spec, networks=wishes.networks)
    return msgspec.structs.replace(
        record, image=wishes.image, spec=spec, published=list(wishes.published), firewall=wishes.firewall, limits=wishes.limits,
        insecure=wishes.insecure,
    )  # fmt: skip


def named_origin(context: Context, machine: str, snapshot: str) -> Origin:
    """The state ``machine@snapshot``, verified. Raises NotFound, DamagedRecord, WrongState, HostLacks."""
    folder = machine_folder(context.home, machine)
    place, record = find_snapshot(folder, snapshot)
    check_loadable(context, f"{machine}@{snapshot}", record)
    ensure_sums(folder, place, record.sums)
    return Origin(folder, place, record)


def check_loadable(context: Context, name: str, record: SnapshotRecord, instead: str = "") -> None:
    """Raises WrongState when the snapshot holds no memory, HostLacks when this host cannot go on from it. ``instead``: what can
    be done then."""
    if record.memory is None or record.board is None:
        raise WrongState(
            f"{name} holds no memory: the machine was stopped",
            code="no_memory_in_snapshot",
            hint="restore it, then start the machine",
        )
    _check_cards(context, name, record)
    here = context.engine.choose_board(record.arch)
    facts = [
        ("accelerator", record.board.accelerator, here.accelerator),
        ("CPU model", record.board.cpu, here.cpu),
        ("machine type", record.board.machine, here.machine),
    ]
    if record.host_cpu and here.cpu == "host":  # the guest sees it as it is; records before version 4 do not say which it was
        facts.append(("CPU", record.host_cpu, host_cpu()))
    for what, theirs, ours in facts:
        if theirs != ours and not (what == "machine type" and _is_older(theirs, ours)):
            raise HostLacks(
                f"{name} cannot go on here: its {what} is {theirs}, this host's is {ours}",
                code="snapshot_not_loadable",
                hint=instead or f"to have its disks alone: insula snapshot restore --disks {name}",
            )


def _check_cards(context: Context, name: str, record: SnapshotRecord) -> None:
    """What its network cards do for the guest needs taps (docs/decisions/0007)."""
    if record.board is not None and record.board.offloads and record.spec.networks and not has_fabric(context):
        raise HostLacks(
            f"{name} cannot go on here: its network cards need networks that this host cannot make",
            code="snapshot_not_loadable",
            hint="see what is missing: insula doctor",
        )


def _is_older(theirs: str, ours: str) -> bool:
    """Pure: whether a machine type such as ``pc-q35-8.2`` is of the same family as the newest this QEMU knows, and not newer:
    QEMU goes on knowing those of its former releases."""
    (family, _, version), (known, _, newest) = theirs.rpartition("-"), ours.rpartition("-")
    numbers = [part.split(".") for part in (version, newest)]
    if family != known or not all(part.isdecimal() for each in numbers for part in each):
        return False
    return [int(part) for part in numbers[0]] <= [int(part) for part in numbers[1]]


def link_memory(folder: Path, origin: Origin) -> None:
    """Link what the fork whose folder this is loads; QEMU has it open then, and the links can go."""
    source = origin.shared or origin.folder
    kept = [file for file in (names.MEMORY, names.STATE) if (source / file).exists()]
    with fleeting():  # after a crash nobody loads them
        link_layers({folder / names.ORIGIN / file: source / file for file in kept})
    with contextlib.suppress(OSError):  # a note that may be missing
        os.link(source / names.VERIFIED_LAYERS, folder / names.ORIGIN / names.VERIFIED_LAYERS)


@contextlib.contextmanager
def shared_by(context: Context, origin: Origin, count: int) -> Iterator[Origin]:
    """The same state for ``count`` machines to go on from: when it rests on a memory file, and what it has beside that would be
    much for each, within the context there is a file with both. The machine's lock is the caller's."""
    memory = origin.record.memory
    if count == 1 or memory is None or memory.method != "changed-pages":
        yield origin
        return
    place = stage_snapshot(origin.machine)
    try:
        made = False
        with contextlib.suppress(OSError, InsulaError):  # no room, say: then each has its own
            made = context.engine.compose_for(count, origin.folder, place)
        if made:
            protect(place, origin.record.id)
        yield msgspec.structs.replace(origin, shared=place) if made else origin
    finally:
        remove_tree(place)


def fill_fork(staged: Path, origin: Origin, *, ephemeral: bool) -> MachineRecord:
    """All of a machine's files but what it loads and its record, which is returned and has no identity of its own yet."""
    for place in (names.DISKS, names.LAYERS, names.ORIGIN):
        (staged / place).mkdir(mode=0o700)
    state = origin.record
    link_layers({staged / path: origin.machine / path for path in sorted(snapshot_layers(state))})
    disks = []
    for disk in state.disks:
        head = f"{names.DISKS}/{disk.name}-0.qcow2"
        create_overlay(staged / head, disk.size)
        disks.append(DiskRecord(name=disk.name, layers=disk.layers, head=head, size=disk.size))
    parent = read_machine(origin.machine)
    record = MachineRecord(
        version=RECORD_VERSION, id="", kind="vm", created=time.time(), image=state.image, spec=state.spec,
        identity=state.identity, boot=state.boot, disks=disks, arch=state.arch, ephemeral=ephemeral, board=state.board,
        sums={path: state.sums[path] for path in snapshot_layers(state) if path in state.sums},
        firewall=parent.firewall, limits=parent.limits.inherited, shape=state.shape,
        insecure=parent.insecure,
    )  # fmt: skip
    if (origin.folder / names.VARIABLES).exists():
        (staged / names.FIRMWARE).mkdir(mode=0o700)
        shutil.copyfile(origin.folder / names.VARIABLES, staged / record.variables)
    return record
