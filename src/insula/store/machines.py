"""Machines on disk: the record, and the folder's life (made aside and renamed in, renamed out and removed)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from insula.errors import AlreadyExists, DamagedRecord, InsulaError, NotFound
from insula.host.files import fsync_folder, remove_tree
from insula.model.identity import Identity, Renewal
from insula.model.limits import Limits
from insula.model.names import LONGEST_SHOWN, nearest
from insula.model.network import Firewall, Nic, Publish
from insula.model.shape import Shape, shape_of
from insula.model.spec import MachineSpec
from insula.model.text import clean
from insula.store import names
from insula.store.locks import held, sign
from insula.store.names import Home
from insula.store.records import read_record, read_version, staged_record, upgrade_shape, write_record
from insula.store.sums import FileSum

RECORD_VERSION = 5


class ImageUse(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which image a machine was made from: the name asked for, and what it meant at that moment."""

    name: str
    digest: str


class Boot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the machine starts: from its own disk, or directly by a kernel (paths relative to the machine's folder)."""

    kind: Literal["disk", "direct"]
    kernel: str | None = None
    initrd: str | None = None
    cmdline: str = ""
    agent: bool = True


class DiskRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One disk: immutable layers bottom to top, then the head, the only file the guest's process may write.

    All paths are relative to the machine's folder; all files are qcow2. ``size`` is the head's virtual size in bytes.
    A QEMU knows its layers by the numbers they had when it started. ``runs``: which of the layers it knows as one that took the
    place of several, and how many fewer there are by that. ``merged``: how many fewer there are by all of them.
    """

    name: str
    layers: list[str]
    head: str
    size: int
    merged: int = 0
    runs: dict[str, int] = {}

    def number(self, place: int) -> int:
        """Under which number QEMU knows the layer at this place; where that is a merged one, the number of its lowest part."""
        return place + self.merged - sum(self.runs.get(layer, 0) for layer in self.layers[place:])


class BoardRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What must stay the same for the guest's hardware to stay the same: set at the first start, then kept.

    ``balloon``: whether memory the guest gives back can return to the host; not so for a machine that is to be forked.
    ``offloads``: whether its network cards do checksums and segmentation for the guest; then they need taps.
    """

    machine: str
    cpu: str
    qemu: str
    accelerator: str
    balloon: bool = True
    offloads: bool = False


class MachineRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What Insula remembers of a machine. Its name is its folder's name and is not repeated here.

    ``sums``: what each immutable file of the machine (path relative to its folder) must be. Version 1 did not have it.
    ``variables``: the file of its UEFI variables, ``tpm``: the folder its TPM is kept in, if it has one. ``parent``: the id of
    the snapshot its present state descends from. ``renewed``: of a fork, what was made new in it. ``nics``: its network cards,
    one for each network of its spec (version 3). ``firewall`` and ``published``: what its networks let through, and which ports
    of the host lead to it. ``limits``: what it may have of the host (version 4). ``shape``: the CPUs and memory of its present
    life, where they are not what its spec says; that is for its next start. ``insecure``: where no whole jail can be had
    it may run without (version 5).
    """

    version: int
    id: str
    kind: Literal["vm"]
    created: float
    image: ImageUse
    spec: MachineSpec
    identity: Identity
    boot: Boot
    disks: list[DiskRecord]
    arch: str
    ephemeral: bool = False
    board: BoardRecord | None = None
    sums: dict[str, FileSum] = {}
    variables: str = f"{names.FIRMWARE}/{names.VARIABLES}"
    tpm: str = f"{names.TPM}/0"
    parent: str | None = None
    renewed: Renewal | None = None
    nics: list[Nic] = []
    firewall: Firewall = Firewall()
    published: list[Publish] = []
    limits: Limits = Limits()
    shape: Shape | None = None
    insecure: bool = False

    @property
    def hardware(self) -> Shape:
        """The CPUs and memory it has while it runs, or is suspended."""
        return shape_of(self.spec, self.shape)


def machine_folder(home: Home, name: str) -> Path:
    """The folder of an existing machine. Raises NotFound, with the nearest names there are."""
    folder = home.machine(name)
    # A name is one component of a path: nothing else may lead out of the folder of machines, or into one that is half made.
    if "/" in name or name[:1] in ("", ".") or not _is_folder(folder):
        shown = clean(name, longest=LONGEST_SHOWN)
        raise NotFound(f"no machine named '{shown}'", code="machine_not_found", hint=_nearest(home, name))
    return folder


def _is_folder(path: Path) -> bool:
    """Whether it is a folder itself: a link to one is no machine. What cannot even be a path is not there."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as cause:
        if cause.errno == errno.ENAMETOOLONG:
            return False
        raise


def _nearest(home: Home, name: str) -> str:
    close = nearest(name, machine_names(home))
    return f"did you mean {' or '.join(close)}?" if close else "to see them: insula list"


def machine_names(home: Home) -> list[str]:
    """Names of all machines, sorted. A folder without a record counts: it is shown as broken, not hidden."""
    try:
        with os.scandir(home.machines) as entries:
            return sorted(
                entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
            )
    except FileNotFoundError:
        return []


class _Identified(msgspec.Struct, frozen=True):
    identity: Identity


def machine_uuids(home: Home) -> Iterator[str]:
    """The UUIDs of all machines whose record can be read so far: of a thousand in some ten milliseconds."""
    decoder = msgspec.json.Decoder(_Identified)
    for name in machine_names(home):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            yield decoder.decode((home.machine(name) / names.RECORD).read_bytes()).identity.uuid


def read_machine(folder: Path) -> MachineRecord:
    """The record in ``folder``. Raises DamagedRecord when it is missing, unreadable or from a newer Insula."""
    path = folder / names.RECORD
    try:
        record = read_record(path, MachineRecord, upgrade_shape)
    except FileNotFoundError:
        raise DamagedRecord(f"{path} is missing", hint=f"to remove what is left: insula delete --force {folder.name}") from None
    except DamagedRecord:
        _refuse_newer(path, read_version(path))  # what it holds that we do not know explains the damage
        raise
    _refuse_newer(path, record.version)
    return record


def _refuse_newer(path: Path, version: int) -> None:
    if version > RECORD_VERSION:
        raise DamagedRecord(
            f"{path} was written by a newer Insula (format {version}, this one knows {RECORD_VERSION})",
            hint="use the newer Insula",
        )


def write_machine(folder: Path, record: MachineRecord) -> None:
    """Replace the machine's record, in the format of this Insula. Raises HostLacks (``no_space``)."""
    write_record(folder / names.RECORD, msgspec.structs.replace(record, version=RECORD_VERSION))


@contextlib.contextmanager
def staged_machine(folder: Path, record: MachineRecord) -> Iterator[Callable[[], None]]:
    """Write a machine's next record beside the present one; what is yielded puts it in its place, which takes no room.

    Raises HostLacks (``no_space``).
    """
    with staged_record(folder / names.RECORD, msgspec.structs.replace(record, version=RECORD_VERSION)) as replace:
        yield replace


def as_launched(folder: Path, record: MachineRecord) -> MachineRecord:
    """The record for a machine whose QEMU is about to start: it will know all layers by the numbers they have now."""
    if not any(disk.merged for disk in record.disks):
        return record
    record = msgspec.structs.replace(record, disks=[msgspec.structs.replace(disk, merged=0, runs={}) for disk in record.disks])
    write_machine(folder, record)
    return record


@contextlib.contextmanager
def new_machine_folder(home: Home, verb: str = "create") -> Iterator[Path]:
    """A staging folder, locked by us for ``verb`` until the exit, also once it is published; what is staged then is removed."""
    home.prepare()
    lock = None
    while lock is None:
        folder = home.machines / f"{names.NEW_PREFIX}{os.urandom(8).hex()}"
        folder.mkdir(mode=0o700)
        lock = _lock_new(folder / names.LOCK)
    try:
        sign(lock, verb)
        yield folder
    finally:
        remove_tree(folder)
        with contextlib.suppress(OSError):
            os.ftruncate(lock, 0)
        os.close(lock)


def staged_folders(home: Home) -> list[Path]:
    """The folders in which verbs make something just now, or made it when they died."""
    with contextlib.suppress(FileNotFoundError), os.scandir(home.machines) as entries:
        return [Path(entry.path) for entry in entries if entry.name.startswith(names.NEW_PREFIX)]
    return []


def _lock_new(path: Path) -> int | None:
    """A descriptor that holds the lock at ``path``; None when another command swept the folder away before it was locked."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    fcntl.flock(lock, fcntl.LOCK_EX)
    if path.exists():
        return lock
    os.close(lock)
    return None


def publish_machine(home: Home, staged: Path, name: str) -> Path:
    """Give a complete staged folder its name, at once and for good. Raises AlreadyExists when the name is taken."""
    folder = home.machine(name)
    fsync_folder(staged)
    _rename_exclusively(staged, folder, name)
    fsync_folder(home.machines)
    return folder


def rename_machine_folder(home: Home, name: str, new_name: str) -> Path:
    """Rename a machine. Raises AlreadyExists when the new name is taken."""
    folder = home.machine(new_name)
    _rename_exclusively(home.machine(name), folder, new_name)
    fsync_folder(home.machines)
    return folder


def _rename_exclusively(source: Path, target: Path, name: str) -> None:
    """rename(2) replaces an empty folder but never a filled one, and a machine's folder always holds its lock file."""
    try:
        source.rename(target)
    except OSError as cause:
        if target.exists():
            raise AlreadyExists(
                f"the name '{name}' is taken", code="name_taken", hint="choose another, or delete that machine first"
            ) from cause
        raise


def remove_machine_folder(home: Home, folder: Path) -> None:
    """Delete a machine: out of sight at once, then its files. A crash in between leaves a folder that sweep() removes."""
    gone = home.machines / f"{names.GONE_PREFIX}{os.urandom(8).hex()}"
    folder.rename(gone)
    fsync_folder(home.machines)
    _remove_gone(home, gone)


def _remove_gone(home: Home, gone: Path) -> None:
    """Give back its addresses first: afterwards nobody knows that they were its own."""
    from insula.store.networks import release_claims

    with contextlib.suppress(InsulaError, OSError):
        release_claims(home, read_machine(gone).id)
    remove_tree(gone)


def sweep_machines(home: Home, end: Callable[[Path], None]) -> list[str]:
    """Remove what dead commands left half-made or half-deleted; returns the names of the folders removed.

    ``end`` ends what runs in a half-made one. Raises what it raises.
    """
    removed = []
    with contextlib.suppress(FileNotFoundError), os.scandir(home.machines) as entries:
        found = [entry for entry in entries if entry.name.startswith((names.GONE_PREFIX, names.NEW_PREFIX))]
        if found:  # or a power cut could bring back the name of a machine that is half deleted
            fsync_folder(home.machines)
        for entry in found:
            if entry.name.startswith(names.GONE_PREFIX):
                _remove_gone(home, Path(entry.path))
                removed.append(entry.name)
            elif entry.name.startswith(names.NEW_PREFIX):
                with held(Path(entry.path) / names.LOCK) as free:
                    if free:
                        end(Path(entry.path))
                        remove_tree(Path(entry.path))
                        removed.append(entry.name)
    return removed
