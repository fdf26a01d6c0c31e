"""Every file name Insula uses on disk, and what a clone or a fork does with it. Mirrored by docs/on-disk.md.

The tree under ``$INSULA_HOME``::

    machines/NAME/            a machine: one folder, complete, copyable
    machines/.new-TOKEN/      a machine being made (renamed into place when whole)
    machines/.gone-TOKEN/     a machine being deleted
    images/DIGEST/            an image: immutable once it has this name
    images/.building-TOKEN/   an image being made
    images/names.json         which names mean which digest
    warm/KEY/                 an image just after boot: a machine folder that never runs, with one snapshot
    spares/ORIGIN/TOKEN/      a fork made ahead: a machine that is loaded and stands, and has no name yet
    networks/NAME/            a network, and in addresses/ a file for each address that a machine's card has
    fabric/                   what the networks in use are made of just now; may be deleted when no machine runs
    host/                     what was found out about this computer, and jail roots; may be deleted at any time
"""

from __future__ import annotations

import os
import pwd
from enum import StrEnum

from insula.errors import HostLacks

TYPE_CHECKING = False  # as in typing, which takes long to load; so does pathlib
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Final


class OnCopy(StrEnum):
    """What a clone or a fork does with a file of its parent."""

    COPY = "copy"  # the same content
    LINK = "link"  # a hard link to the same immutable file
    RESET = "reset"  # made new
    SKIP = "skip"  # not taken along


# -- a machine's folder -----------------------------------------------------------------------------------------------
RECORD: Final = "machine.json"
LOCK: Final = "lock"
JOURNAL: Final = "journal.json"
EVENTS: Final = "events.jsonl"
EVENTS_OLD: Final = "events.jsonl.1"
CONSOLE: Final = "console.log"
CONSOLE_OLD: Final = "console.log.1"
QEMU_LOG: Final = "qemu.log"
LAST_END: Final = "last-end.json"
VERIFIED_LAYERS: Final = "verified.json"
DISKS: Final = "disks"
LAYERS: Final = "layers"
FIRMWARE: Final = "firmware"
TPM: Final = "tpm"  # of a machine, a folder; of a snapshot, a file
VARIABLES: Final = "vars.fd"
RUN: Final = "run"
RUN_NEXT: Final = "run.next"  # of a QEMU that is to take the place of the one in run/
SNAPSHOTS: Final = "snapshots"
SUSPENDED: Final = "suspended"
ORIGIN: Final = "origin"  # while a fork is made: links to the memory and devices it goes on from

ON_COPY: Final[dict[str, OnCopy]] = {
    RECORD: OnCopy.RESET,
    LOCK: OnCopy.RESET,
    JOURNAL: OnCopy.SKIP,
    EVENTS: OnCopy.RESET,
    EVENTS_OLD: OnCopy.SKIP,
    CONSOLE: OnCopy.RESET,
    CONSOLE_OLD: OnCopy.SKIP,
    QEMU_LOG: OnCopy.RESET,
    LAST_END: OnCopy.SKIP,
    VERIFIED_LAYERS: OnCopy.SKIP,
    DISKS: OnCopy.COPY,
    LAYERS: OnCopy.LINK,
    FIRMWARE: OnCopy.COPY,
    TPM: OnCopy.COPY,
    RUN: OnCopy.SKIP,
    RUN_NEXT: OnCopy.SKIP,
    SNAPSHOTS: OnCopy.SKIP,
    SUSPENDED: OnCopy.SKIP,
    ORIGIN: OnCopy.SKIP,
}

LAYER_MODE: Final = 0o444  # of a layer whose content is on the disk for good

# -- a snapshot's folder ---------------------------------------------------------------------------------------------------
SNAPSHOT_RECORD: Final = "snapshot.json"
MEMORY: Final = "memory"
STATE: Final = "state"

# -- its run/ folder: exists while the machine runs, and holds nothing worth keeping ---------------------------------------
KEEPER_SOCKET: Final = "keeper.sock"
QMP_SOCKET: Final = "qmp.sock"
QMP_READ_SOCKET: Final = "qmp-read.sock"
STATUS: Final = "status.json"
EXIT: Final = "exit.json"
DUE: Final = "due.json"
GROUP: Final = "group"
SQUEEZED: Final = "squeezed.json"  # what its guest gave back for others' sake
WARMING: Final = "warming"  # in a folder where a warm state is made
MERGED: Final = "merged"  # in a folder where layers are merged: what becomes of them
AT_REST: Final = "rest.json"  # how much CPU time it had used when somebody looked
HELD: Final = "held.json"  # by whom others suffered: what it is held down to for a while
UNJAILED: Final = "unjailed"  # by which way it runs without a whole jail

# -- prefixes of folders that are not finished or not wanted any more ---------------------------------------------------------
NEW_PREFIX: Final = ".new-"
GONE_PREFIX: Final = ".gone-"
BUILDING_PREFIX: Final = ".building-"

# -- an image's folder ---------------------------------------------------------------------------------------------------
IMAGE_RECORD: Final = "image.json"
IMAGE_NAMES: Final = "names.json"
ROOT_LAYER: Final = "root.qcow2"
KERNEL: Final = "vmlinuz"
INITRD: Final = "initrd"

# -- beside the images, and what is remembered about them elsewhere ----------------------------------------------------------
IMAGES_LOCK: Final = ".lock"  # held for the instants in which folders of images come, go, or are named
BUILD_ROOM: Final = "room"  # in a building folder: owned by the ids of a user namespace
CORES: Final = "cores"  # in host/: a file for each machine that runs on CPUs of its own
KSM: Final = "ksm"  # in host/: we turned the kernel's merging of equal pages on
GUARD_LOCK: Final = "guard.lock"  # in host/: a guard is at work
VERIFIED: Final = "verified"  # in host/: which files of images were hashed, and how they looked then


# -- a network's folder, and that of what networks are made of -----------------------------------------------------------------
NETWORK_RECORD: Final = "network.json"
ADDRESSES: Final = "addresses"
HOLDER_SOCKET: Final = "holder.sock"
FABRIC_NICS: Final = "nics"  # KEY.json of each card that is attached: all that a rebuild needs
FABRIC_NETWORKS: Final = "networks"  # ID/ of each network in use: what its dnsmasq reads
FABRIC_PORTS: Final = "ports"
FABRIC_SEGMENTS: Final = "segments"  # KEY.sock, KEY/: a card's network of its own, where it has one
FABRIC_STATE: Final = "state.json"
FABRIC_LAID: Final = "laid"  # there when all is that is there before any network
PASTA_LOG: Final = "pasta.log"


class Home:
    """The folder that holds all of Insula's state; made on first use, readable by its owner alone."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.machines = root / "machines"
        self.images = root / "images"
        self.host = root / "host"
        self.warm = root / "warm"
        self.spares = root / "spares"
        self.networks = root / "networks"
        self.fabric = root / "fabric"

    def prepare(self) -> None:
        """Make the folders. Raises HostLacks (``no_home``) when that cannot be."""
        try:
            for folder in (self.root, self.machines, self.images, self.host, self.warm, self.spares, self.networks):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as cause:
            raise HostLacks(
                f"{self.root} cannot hold Insula's state: {cause.strerror}",
                code="no_home",
                hint="set INSULA_HOME to a folder you may write, on a disk with room",
            ) from cause

    def machine(self, name: str) -> Path:
        return self.machines / name

    def image(self, digest: str) -> Path:
        return self.images / digest

    def network(self, name: str) -> Path:
        return self.networks / name

    def __repr__(self) -> str:
        return f"Home({os.fspath(self.root)!r})"


def default_home() -> Home:
    """The home at `default_root`."""
    from pathlib import Path

    return Home(Path(default_root()))


def default_root() -> str:
    """``$INSULA_HOME``, else ``/var/lib/insula`` for root, else ``$XDG_DATA_HOME/insula``."""
    if chosen := os.environ.get("INSULA_HOME"):
        return chosen if os.path.isabs(chosen) else os.path.join(os.getcwd(), chosen)
    if os.geteuid() == 0:
        return "/var/lib/insula"
    data = os.environ.get("XDG_DATA_HOME") or f"{os.environ.get('HOME') or pwd.getpwuid(os.geteuid()).pw_dir}/.local/share"
    return f"{data}/insula"


def run_folder(name: str) -> str:
    """The run folder of a machine in the default home, as text: for who cannot spare the time to load pathlib."""
    return os.path.join(default_root(), "machines", name, RUN)


def home_key(home: str | os.PathLike[str]) -> str:
    """8 hex digits that stand for the home at this path, where what belongs to it is beside what belongs to others."""
    from insula.host.digest import digest_of

    return digest_of(os.fsencode(os.path.realpath(home)))[:8]


def is_component(name: str) -> bool:
    """Whether ``name`` can be that of a folder of a machine: one component of a path, not hidden, no longer than they may be."""
    return "/" not in name and name[:1] not in ("", ".") and len(os.fsencode(name)) <= 255
