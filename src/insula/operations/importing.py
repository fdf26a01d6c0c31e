"""Import: a snapshot that came as a stream of bytes becomes one of a machine here.

    read what it says of itself → can it go on here? → files into a folder nobody sees, each held to its sum → look at the layers
    → a new machine is published, or an existing one, under its lock, gets links of the files and the snapshot its name

Until the last step nothing of it can be used, and a crash leaves a folder that the next verb sweeps away.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec

from insula.disks.inspect import check_layer
from insula.disks.layers import link_layer
from insula.disks.overlays import create_overlay
from insula.errors import AlreadyExists, HostLacks, InsulaError, WrongState
from insula.host.cpu import host_cpu
from insula.host.files import explain_os_error, fsync_folder
from insula.isolation.uids import jail_ids
from insula.model.identity import Identity
from insula.model.names import check_machine_name
from insula.model.network import DEFAULT_NETWORK
from insula.model.requests import ImportSnapshot
from insula.model.status import SnapshotStatus
from insula.model.transfer import Transfer
from insula.operations import journal
from insula.operations.capture import protect
from insula.operations.context import Context
from insula.operations.hold import Held, hold_machine
from insula.operations.identities import own_identity
from insula.operations.operation import Operation
from insula.operations.recover import sweep
from insula.operations.snapshot import check_snapshot_name, look_at
from insula.store import names
from insula.store.envelope import damaged
from insula.store.events import append_event
from insula.store.machines import (
    RECORD_VERSION,
    DiskRecord,
    MachineRecord,
    machine_uuids,
    new_machine_folder,
    publish_machine,
    write_machine,
)
from insula.store.manifest import Manifest, decode_manifest
from insula.store.parcel import ParcelReader, check_room, write_at
from insula.store.snapshots import SnapshotRecord, complete_snapshot, publish_snapshot, snapshot_layers
from insula.store.sums import FileSum, Stamp, stamp_file, write_stamps
from insula.store.tpm import make_tpm


def import_snapshot(context: Context, request: ImportSnapshot, operation: Operation, transfer: Transfer) -> SnapshotStatus:
    """Take in a snapshot as one of the machine ``name``, which is made if there is none: stopped, its disks as they were then.

    Raises DamagedRecord (the file), UsageError (a passphrase), HostLacks (``snapshot_not_loadable``, ``no_space``),
    AlreadyExists, WrongState (``snapshot_does_not_fit``), Busy; then nothing is left of it.
    """
    check_machine_name(request.name)
    reader = ParcelReader(transfer)
    manifest = decode_manifest(reader.manifest())
    wanted = request.snapshot or manifest.name
    check_snapshot_name(wanted)
    context.home.prepare()
    sweep(context)
    check_origin(context, manifest)
    existing = context.home.machine(request.name).exists()
    if existing:  # before the long work, and again after it
        with hold_machine(context, request.name, "import") as held:
            _check_fits(held, manifest.record, wanted)
    with new_machine_folder(context.home, "snapshot import") as staged:
        operation.tell("read it")
        record = _take_in(context, reader, manifest, staged, wanted, operation)
        for words in _networks_here(context, record):
            operation.tell(words)
        operation.tell("give it its name")
        publish = _join if existing else _publish
        publish(context, request.name, wanted, staged, record)
    folder = context.home.machine(request.name)
    append_event(folder, "snapshot-imported", name=wanted)
    return look_at(folder, wanted)


def _networks_here(context: Context, record: SnapshotRecord) -> Iterator[str]:
    """To whom machines of a snapshot that came from elsewhere will be neighbours: networks are known by their names alone."""
    from insula.store.networks import list_networks

    there = dict(list_networks(context.home))
    for name in dict.fromkeys(record.spec.networks):
        if name in there:
            yield f"its machines are on this computer's network '{name}' ({there[name].spec.mode})"
        elif name != DEFAULT_NETWORK:
            yield f"its machines are on a network '{name}', which must be made before they go on: insula network create {name}"


def check_origin(context: Context, manifest: Manifest) -> None:
    """Raises HostLacks (``snapshot_not_loadable``), naming both sides, when this host cannot go on from the snapshot."""
    record = manifest.record
    here = context.engine.choose_board(record.arch)
    board = record.board
    if record.memory is None or board is None:
        return
    facts = [("accelerator", board.accelerator, here.accelerator), ("CPU model", board.cpu, here.cpu)]
    if board.cpu == "host" == here.cpu:
        facts.append(("CPU", manifest.host_cpu, host_cpu()))
    if (
        _machine_age(board.machine) > _machine_age(here.machine)
        or board.machine.rpartition("-")[0] != here.machine.rpartition("-")[0]
    ):
        facts.append(("machine type", f"{board.machine} (QEMU {board.qemu})", f"{here.machine} at most (QEMU {here.qemu})"))
    for what, theirs, ours in facts:
        if theirs != ours:
            raise HostLacks(
                f"{manifest.machine}@{manifest.name} cannot go on here: its {what} is {theirs}, this host's is {ours}",
                code="snapshot_not_loadable",
                hint="import it on a host like the one it was taken on",
            )


def _machine_age(machine: str) -> tuple[int, ...]:
    return tuple(int(part) for part in machine.rpartition("-")[2].split("."))


def _check_fits(held: Held, record: SnapshotRecord, wanted: str) -> None:
    """Raises AlreadyExists, WrongState (``snapshot_does_not_fit``): a machine goes back only to what it could have been."""
    machine = held.record
    if (held.folder / names.SNAPSHOTS / wanted).exists():
        raise AlreadyExists(
            f"{held.folder.name} has a snapshot '{wanted}' already",
            code="snapshot_exists",
            hint=f"give it another name: insula snapshot import FILE {held.folder.name}@NAME",
        )
    for what, theirs, ours in (
        ("image", record.image.digest[:12], machine.image.digest[:12]),
        ("architecture", record.arch, machine.arch),
        ("shape", _shape(record.spec), _shape(machine.spec)),
        ("way to boot", record.boot.kind, machine.boot.kind),
        ("disks", _disks(record), _disks(machine)),
    ):
        if theirs != ours:
            raise WrongState(
                f"the snapshot does not fit {held.folder.name}: its {what} is {theirs}, the machine's is {ours}",
                code="snapshot_does_not_fit",
                hint="import it under a new name",
            )


def _shape(spec: msgspec.Struct) -> str:
    """Which networks a machine is on may differ: its cards are plugged in and out."""
    return ", ".join(f"{key} {value}" for key, value in msgspec.to_builtins(spec).items() if key != "networks")


def _disks(record: SnapshotRecord | MachineRecord) -> str:
    return ", ".join(f"{disk.name} {disk.size}" for disk in record.disks)


# -- taking in ---------------------------------------------------------------------------------------------------------------
def _take_in(
    context: Context, reader: ParcelReader, manifest: Manifest, staged: Path, wanted: str, operation: Operation
) -> SnapshotRecord:
    """Fill the staged folder; on return all is on the disk and is what the manifest says. Raises as `import_snapshot`."""
    record, place = manifest.record, staged / names.SNAPSHOTS / wanted
    for folder in (staged / names.LAYERS, place):
        folder.mkdir(mode=0o700, parents=True)
    places = {path: _place(path, entry) for path, entry in record.sums.items()}
    here = dict(_from_image(context, record))
    for path, file in here.items():
        link_layer(file, staged / places[path])
    check_room(staged, sum(size for path, size in manifest.data.items() if path not in here))
    total, done, stamps = sum(manifest.data.values()), 0, {}
    for path in manifest.files:
        operation.tell("read it", done / total if total else None)
        target = None if path in here else (staged / places[path] if "/" in path else place / path)
        _read_file(reader, record.sums[path], manifest.data[path], target)
        done += manifest.data[path]
    reader.end()
    operation.tell("check its files")
    disks = {layer: disk.size for disk in record.disks for layer in disk.layers}
    for path, expected in record.sums.items():
        file = staged / places[path] if "/" in path else place / path
        stamps[places[path]] = _check_sum(file, path, expected)
        if path in disks and path not in here:
            check_layer(file, disks[path], record.identity.uuid)
    local = _renamed(record, places)
    protect(place, local.id)
    write_stamps(place / names.VERIFIED_LAYERS, stamps)
    for folder in (staged / names.LAYERS, place):
        fsync_folder(folder)
    complete_snapshot(place, local)
    fsync_folder(place.parent)
    return local


def _place(path: str, entry: FileSum) -> str:
    """Where a file goes: those of the snapshot keep their names, which are ours; all others are named after their content."""
    if "/" not in path:
        return path
    kind = "qcow2" if path.endswith(".qcow2") else "boot"
    return f"{names.LAYERS}/{entry.sha256[:32]}.{kind}"


def _from_image(context: Context, record: SnapshotRecord) -> Iterator[tuple[str, Path]]:
    """Files of the snapshot that are here already, being those of its image."""
    from insula.images.catalogue import find
    from insula.images.verify import ensure_verified

    with contextlib.suppress(InsulaError, FileNotFoundError):
        image = find(context.home, record.image.digest)
        if image is None:
            return
        ensure_verified(context.home, image)
        known = {entry.sha256: image.folder / name for name, entry in image.record.files.items()}
        for path in snapshot_layers(record):
            if record.sums[path].sha256 in known:
                yield path, known[record.sums[path].sha256]


def _read_file(reader: ParcelReader, expected: FileSum, data: int, target: Path | None) -> None:
    if target is None:
        reader.file(expected.size, data, lambda _offset, _content: None)
        return
    if target.exists():  # two layers of the same content
        reader.file(expected.size, data, lambda _offset, _content: None)
        return
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        reader.file(expected.size, data, write_at(descriptor))
        os.ftruncate(descriptor, expected.size)
        os.fchmod(descriptor, names.LAYER_MODE if target.parent.name == names.LAYERS else 0o400)
        os.fsync(descriptor)
    except OSError as cause:
        raise explain_os_error(cause, target) from cause
    finally:
        os.close(descriptor)


def _check_sum(file: Path, path: str, expected: FileSum) -> Stamp:
    stamp = stamp_file(file, sparse=expected.sparse)
    if (stamp.size, stamp.sha256) != (expected.size, expected.sha256):
        raise damaged(f"{path} is not what its sum says")
    return stamp


def _renamed(record: SnapshotRecord, places: dict[str, str]) -> SnapshotRecord:
    """The record as it holds here. Its id is new: which machines may read its memory follows from that."""
    disks = [msgspec.structs.replace(disk, layers=[places[layer] for layer in disk.layers]) for disk in record.disks]
    boot = msgspec.structs.replace(
        record.boot,
        kernel=places[record.boot.kernel] if record.boot.kernel else None,
        initrd=places[record.boot.initrd] if record.boot.initrd else None,
    )
    sums = {places[path]: entry for path, entry in record.sums.items()}
    return msgspec.structs.replace(record, id=str(uuid.uuid4()), parent=None, disks=disks, boot=boot, sums=sums)


# -- publishing --------------------------------------------------------------------------------------------------------------
def _publish(context: Context, name: str, wanted: str, staged: Path, state: SnapshotRecord) -> None:
    """The staged folder becomes a machine. It is who it was, unless somebody here is that already."""
    (staged / names.DISKS).mkdir(mode=0o700)
    disks = []
    for disk in state.disks:
        head = f"{names.DISKS}/{disk.name}-0.qcow2"
        create_overlay(staged / head, disk.size)
        disks.append(DiskRecord(name=disk.name, layers=disk.layers, head=head, size=disk.size))
    record = MachineRecord(
        version=RECORD_VERSION, id="", kind="vm", created=time.time(), image=state.image, spec=state.spec,
        identity=state.identity, boot=state.boot, disks=disks, arch=state.arch, board=state.board, parent=state.id,
        sums={path: state.sums[path] for path in snapshot_layers(state)},
    )  # fmt: skip
    variables = staged / names.SNAPSHOTS / wanted / names.VARIABLES
    if variables.exists():
        (staged / names.FIRMWARE).mkdir(mode=0o700)
        shutil.copyfile(variables, staged / record.variables)
    if (kept := staged / names.SNAPSHOTS / wanted / names.TPM).exists():
        make_tpm(staged / record.tpm, kept.read_bytes())
    with own_identity(context.home) as fresh:
        identity = state.identity if _is_free(context, state.identity) else fresh
        write_machine(staged, msgspec.structs.replace(record, id=identity.uuid, identity=identity))
        publish_machine(context.home, staged, name)


def _is_free(context: Context, identity: Identity) -> bool:
    """Whether no machine here has this identity, or the user that follows from it."""
    others = set(machine_uuids(context.home))
    mine = jail_ids(identity.uuid).machine
    return identity.uuid not in others and (mine is None or mine not in {jail_ids(other).machine for other in others})


def _join(context: Context, name: str, wanted: str, staged: Path, state: SnapshotRecord) -> None:
    """The machine ``name`` gets the staged snapshot and links of its layers."""
    with hold_machine(context, name, "import") as held:
        _check_fits(held, state, wanted)
        journal.note(held.folder, "snapshot import", "link its layers")
        for path in sorted(snapshot_layers(state)):
            with contextlib.suppress(FileExistsError):  # it is named after its content: the same one came before
                link_layer(staged / path, held.folder / path)
        (held.folder / names.SNAPSHOTS).mkdir(mode=0o700, exist_ok=True)
        publish_snapshot(staged / names.SNAPSHOTS / wanted, held.folder / names.SNAPSHOTS / wanted)
        journal.clear(held.folder)
