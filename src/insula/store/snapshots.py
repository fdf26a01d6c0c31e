"""Snapshots on disk: the record, and the folder's life (made aside and renamed in, renamed out and removed)."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from insula.errors import AlreadyExists, DamagedRecord, HostLacks, InsulaError, NotFound
from insula.host.files import fsync_folder, is_temporary, remove_tree
from insula.model.identity import Identity
from insula.model.names import nearest
from insula.model.network import Nic
from insula.model.shape import Shape, shape_of
from insula.model.spec import MachineSpec
from insula.store import names
from insula.store.machines import BoardRecord, Boot, ImageUse, MachineRecord
from insula.store.records import read_record, upgrade_shape, write_record
from insula.store.sums import FileSum

SNAPSHOT_VERSION = 4
BEFORE_RESTORE = "before-restore"
PUBLISH = "publish"  # the step of a verb that is to give its state a name once QEMU has ended


class DiskState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One disk at the instant: its layers bottom to top, as paths relative to the machine's folder, and its size in bytes.

    ``head``: the empty head on top of them, for a suspended machine, whose memory must meet no other.
    """

    name: str
    layers: list[str]
    size: int
    head: str | None = None


class MemoryState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The running part. ``method``: how it was taken; ``offset``: where the guest's memory begins in the file ``memory``, None
    when all is in ``state``; ``pause``: how long the guest stood still for it, in seconds."""

    method: Literal["changed-pages", "mapped-ram", "background-snapshot", "stream"]
    offset: int | None
    pause: float


class SnapshotRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``snapshot.json``: all that must fit together to bring the machine back. Written last.

    ``state`` is that of the machine at the instant; ``memory`` None for a stopped one. ``parent`` is the id of the snapshot
    that the machine's state descended from. ``sums``: what the snapshot's files and the layers must be (paths relative to the
    machine's folder, the snapshot's own files by their bare names). ``shape``: as of a machine (version 3).
    ``host_cpu``: where the guest sees this host's CPU as it is, which that was (version 4).
    """

    version: int
    id: str
    created: float
    description: str
    state: Literal["running", "paused", "stopped"]
    parent: str | None
    image: ImageUse
    spec: MachineSpec
    identity: Identity
    boot: Boot
    arch: str
    board: BoardRecord | None
    disks: list[DiskState]
    memory: MemoryState | None
    sums: dict[str, FileSum]
    nics: list[Nic] = []
    shape: Shape | None = None
    host_cpu: str = ""

    @property
    def hardware(self) -> Shape:
        """The CPUs and memory that the machine had at the instant."""
        return shape_of(self.spec, self.shape)

    def former(self, own: Identity) -> Identity | None:
        """Who the guest in memory takes itself for, when that is somebody else than the machine with the identity ``own``: the
        snapshot came from elsewhere."""
        return self.identity if self.identity.uuid != own.uuid else None


def snapshot_folder(machine: Path, name: str) -> Path:
    """The folder of an existing snapshot. Raises NotFound, with the nearest names there are."""
    folder = machine / names.SNAPSHOTS / name
    if not names.is_component(name) or not folder.is_dir() or folder.is_symlink():
        close = nearest(name, there := snapshot_names(machine))
        hint = f"there are: {', '.join(there[:5])}{', …' if there[5:] else ''}"
        if close or not there:
            hint = f"did you mean {' or '.join(close)}?" if close else f"to take one: insula snapshot create {machine.name}"
        raise NotFound(f"{machine.name} has no snapshot '{name}'", code="snapshot_not_found", hint=hint)
    return folder


def snapshot_names(machine: Path) -> list[str]:
    """Names of all snapshots of a machine, sorted; also of those that cannot be read."""
    try:
        with os.scandir(machine / names.SNAPSHOTS) as entries:
            return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def read_snapshot(folder: Path) -> SnapshotRecord:
    """The record in ``folder``. Raises DamagedRecord when it is missing, unreadable or from a newer Insula."""
    path = folder / names.SNAPSHOT_RECORD
    try:
        record = read_record(path, SnapshotRecord, upgrade_shape)
    except FileNotFoundError:
        raise DamagedRecord(f"{path} is missing", code="snapshot_damaged", hint="delete the snapshot") from None
    except DamagedRecord as cause:
        version = _version(path)
        if version > SNAPSHOT_VERSION:
            raise _too_new(path, version) from cause
        raise
    if record.version > SNAPSHOT_VERSION:
        raise _too_new(path, record.version)
    return record


def _version(path: Path) -> int:
    from insula.store.records import read_version

    return read_version(path)


def _too_new(path: Path, version: int) -> DamagedRecord:
    return DamagedRecord(
        f"{path} was written by a newer Insula (format {version}, this one knows {SNAPSHOT_VERSION})",
        code="snapshot_too_new",
        hint="use the newer Insula",
    )


def readable_snapshots(machine: Path) -> Iterator[tuple[str, SnapshotRecord]]:
    """Name and record of every snapshot that can be read."""
    for name in snapshot_names(machine):
        with contextlib.suppress(InsulaError, OSError):
            yield name, read_snapshot(machine / names.SNAPSHOTS / name)


def stage_snapshot(machine: Path) -> Path:
    """A folder to make a snapshot in; the caller holds the machine's lock."""
    folder = machine / names.SNAPSHOTS / f"{names.NEW_PREFIX}{os.urandom(8).hex()}"
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700)
    return folder


def complete_snapshot(staged: Path, record: SnapshotRecord) -> None:
    """Write the record into a folder whose files are on the disk: it is whole now, but has no name."""
    write_record(staged / names.SNAPSHOT_RECORD, record)
    fsync_folder(staged)


def publish_snapshot(staged: Path, folder: Path) -> None:
    """Give a complete snapshot its name, for good. Raises AlreadyExists."""
    try:
        staged.rename(folder)
    except OSError as cause:
        if folder.exists():
            raise AlreadyExists(f"there is a snapshot '{folder.name}' already", code="snapshot_exists") from cause
        raise
    fsync_folder(folder.parent)


def put_away_snapshot(folder: Path) -> None:
    """Take a snapshot out of sight, for good. `sweep_snapshots` removes its files, also when a crash came in between."""
    folder.rename(folder.with_name(f"{names.GONE_PREFIX}{os.urandom(8).hex()}"))
    fsync_folder(folder.parent)


def hand_on_children(machine: Path, name: str) -> str | None:
    """What descends from the snapshot ``name`` descends from its parent from now on, whose id is returned; it is about to go.

    On a full disk, where deleting must be possible, what descends from it becomes a root of the tree instead.
    """
    records = dict(readable_snapshots(machine))
    gone = records.get(name)
    if gone is None:
        return None
    with contextlib.suppress(HostLacks):
        for other, record in records.items():
            if record.parent == gone.id:
                complete_snapshot(machine / names.SNAPSHOTS / other, msgspec.structs.replace(record, parent=gone.parent))
    return gone.parent


def sweep_snapshots(machine: Path, record: MachineRecord) -> None:
    """Remove half-made and half-deleted snapshots, and layers, heads, variables and TPMs that nobody names. The caller holds the
    machine's lock.

    When a snapshot's record cannot be read nobody knows what it needs, and no layer is removed. The folders go last: as long as
    they are there, it is seen that something is left to do.
    """
    unwanted = unwanted_snapshots(machine)
    if unwanted:
        fsync_folder(machine / names.SNAPSHOTS)  # or a power cut could bring back the name of one that is half removed
    try:
        named = _named(machine, record)
    except (InsulaError, OSError):
        pass
    else:
        _remove_unnamed(machine, record, named)
    for folder in unwanted:
        remove_tree(folder)


def unwanted_snapshots(machine: Path) -> list[Path]:
    """Folders of snapshots that are half made or half deleted."""
    try:
        with os.scandir(machine / names.SNAPSHOTS) as entries:
            return [Path(entry.path) for entry in entries if entry.name.startswith((names.NEW_PREFIX, names.GONE_PREFIX))]
    except FileNotFoundError:
        return []


def _named(machine: Path, record: MachineRecord) -> set[str]:
    """The files that the machine, its snapshots, and what it is suspended with rest on. Raises DamagedRecord."""
    named = needed_layers(record) | {disk.head for disk in record.disks} | {record.variables, record.tpm}
    for name in snapshot_names(machine):
        named |= snapshot_layers(read_snapshot(machine / names.SNAPSHOTS / name))
    if (machine / names.SUSPENDED).exists():
        named |= snapshot_layers(read_snapshot(machine / names.SUSPENDED))
    return named


def _remove_unnamed(machine: Path, record: MachineRecord, named: set[str]) -> None:
    fsync_folder(machine)  # what is removed now must not be named by a record that a power cut brings back
    for path in needed_layers(record):
        settle_layer(machine / path)
    for folder in (names.LAYERS, names.DISKS, names.FIRMWARE, names.TPM):
        with contextlib.suppress(FileNotFoundError), os.scandir(machine / folder) as entries:
            for entry in list(entries):
                if f"{folder}/{entry.name}" in named:
                    continue
                if folder == names.TPM:
                    remove_tree(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(entry.path)


def settle_layer(path: Path) -> None:
    """Make sure of a layer that was a head until its verb died: its content first, then the mode that says so."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_IMODE(path.lstat().st_mode) != names.LAYER_MODE:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.fsync(descriptor)
                os.fchmod(descriptor, names.LAYER_MODE)
            finally:
                os.close(descriptor)


def needed_layers(record: MachineRecord) -> set[str]:
    """The immutable files a machine's present state rests on."""
    return {layer for disk in record.disks for layer in disk.layers} | _boot_files(record.boot)


def snapshot_layers(record: SnapshotRecord) -> set[str]:
    """The files outside its own folder that a snapshot rests on."""
    return {layer for disk in record.disks for layer in disk.layers} | _boot_files(record.boot)


def _boot_files(boot: Boot) -> set[str]:
    return {path for path in (boot.kernel, boot.initrd) if path is not None}


def finish_publishing(machine: Path, verb: str, step: str) -> None:
    """Give a state its name that a dead verb meant to give as soon as QEMU had ended, which it has. The caller holds the lock.

    Only what is whole is published: its record is written last.
    """
    staged = unpublished(machine)
    place = {"suspend": machine / names.SUSPENDED, "restore": machine / names.SNAPSHOTS / BEFORE_RESTORE}.get(verb)
    if place is None or step != PUBLISH or staged is None:
        return
    for scrap in [path for path in staged.iterdir() if is_temporary(path.name)]:
        scrap.unlink()
    if place.exists():
        place.rename(staged.with_name(f"{names.GONE_PREFIX}{os.urandom(8).hex()}"))
    staged.rename(place)
    fsync_folder(place.parent)


def unpublished(machine: Path) -> Path | None:
    """The folder of a state that is whole and has no name yet, if there is one."""
    staged = (machine / names.SNAPSHOTS).glob(f"{names.NEW_PREFIX}*")
    return next((path for path in staged if (path / names.SNAPSHOT_RECORD).exists()), None)
