"""What is observed: a machine as `list` and `show` present it."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from insula.model.identity import Renewal
from insula.model.limits import Hold, Limits
from insula.model.network import Firewall, Nic, Publish


class State(StrEnum):
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    BROKEN = "broken"

    @property
    def has_process(self) -> bool:
        return self in (State.STARTING, State.RUNNING, State.PAUSED)


class End(msgspec.Struct, frozen=True):
    """Why a machine is not running any more.

    ``reason`` is one of guest-shutdown, guest-reset, guest-panic, stopped, killed (also: its keeper left no word, because it
    was killed or the host went down), crashed, failed-to-start, disk-full (it ended while it was paused for want of space).
    ``at`` is in seconds since 1970, ``detail`` a signal or an exit status, ``last_words`` what QEMU said last, cleaned.
    """

    reason: str
    at: float
    detail: str = ""
    last_words: str = ""


class MachineStatus(msgspec.Struct, frozen=True):
    """One machine, seen from outside. The order of the fields is the order in JSON: the most wanted first.

    ``reason``: why it is paused though nobody asked for it, such as ``no-space`` (the disk that holds its folder is full).
    ``cpus`` and ``memory`` are what it has now; ``next_start``: what it boots with next time, where that is something else.
    ``note``: what a verb could not do as it was asked to, and why. ``unjailed``: what of its jail it runs
    without, having leave to.
    """

    name: str
    kind: str
    state: State
    image: str
    addresses: list[str]
    cpus: int
    memory: int
    disk: int
    created: float
    agent: bool = False
    ephemeral: bool = False
    problem: str | None = None
    reason: str | None = None
    ended: End | None = None
    next_start: str | None = None
    note: str | None = None
    unjailed: str | None = None


class MachineDetails(MachineStatus, frozen=True, kw_only=True):
    """What `show` tells: all that `list` does, under the same names, and more.

    ``origin``: what it was forked or cloned from (``web@snap1``), as that was called then. ``renewed``: of a fork, which parts of
    its former identity were made new, and which were not. ``holds``: how it is held to ``limits`` while it runs.
    ``returns``: how memory that its guest frees comes back to the host, while it runs. ``cards``: what passed each, of those that
    hang now. ``insecure``: it has leave to run without what of its jail cannot be had.
    """

    id: str
    image_digest: str
    networks: list[str]
    firmware: str
    nics: list[Nic]
    firewall: Firewall
    published: list[Publish]
    board: str
    cpu_model: str
    accelerator: str
    qemu: str
    folder: str
    disk_used: int
    guest: dict[str, str]
    process: dict[str, int]
    display: str = "none"
    tpm: bool = False
    origin: str = ""
    renewed: Renewal | None = None
    limits: Limits = Limits()
    holds: list[Hold] = []
    returns: str = ""
    cards: list[TrafficStatus] = []
    insecure: bool = False


class SnapshotStatus(msgspec.Struct, frozen=True):
    """One snapshot. ``machine`` and ``name`` are what people write as ``MACHINE@NAME``; ``state`` is that of the machine at
    its instant: running, paused or stopped (then it holds no memory).

    ``parent`` is the name of the snapshot the machine's state then descended from, if that still exists. ``size`` is what it
    holds on disk, in bytes: memory, devices and the layers nobody else names. ``method`` is how memory was taken, ``pause`` how
    long the guest stood still for it, in seconds. ``current``: the machine's present state descends from this one directly.
    """

    machine: str
    name: str
    state: str
    created: float
    size: int
    parent: str | None = None
    description: str = ""
    method: str = ""
    pause: float = 0.0
    current: bool = False
    problem: str | None = None


class SnapshotDetails(SnapshotStatus, frozen=True, kw_only=True):
    """What `snapshot show` tells: all that `snapshot list` does, under the same names, and more. ``files`` are names and sizes in
    bytes."""

    id: str
    cpus: int
    memory: int
    disks: dict[str, int]
    files: dict[str, int]
    qemu: str
    board: str
    cpu_model: str
    accelerator: str


class SharedFile(msgspec.Struct, frozen=True):
    """A file that others need, too: ``others`` as ``machine web``, ``image DIGEST`` or ``elsewhere``. ``size``: bytes on disk."""

    path: str
    size: int
    others: list[str]


class HolderUsage(msgspec.Struct, frozen=True):
    """What one machine, image, warm state or cache holds on disk, in bytes. ``own`` is freed when it goes, ``shared`` is not.

    Together they are ``heads`` (what the disks changed since their layers), ``layers``, ``memory`` (of snapshots, with
    devices) and the ``rest``.
    """

    kind: str
    name: str
    own: int
    shared: int
    heads: int
    layers: int
    memory: int
    rest: int
    shared_files: list[SharedFile]


class DiskUsage(msgspec.Struct, frozen=True):
    """``total``: all that Insula holds on disk, each file counted once."""

    holders: list[HolderUsage]
    total: int


class ExportStatus(msgspec.Struct, frozen=True):
    """A snapshot that was exported; ``data`` are the bytes of its files, holes aside."""

    machine: str
    name: str
    data: int
    encrypted: bool


class WarmStatus(msgspec.Struct, frozen=True):
    """A warm state: an image just after boot. ``age`` in seconds, ``size`` in bytes; ``stale``: why it is not used any more."""

    key: str
    image: str
    digest: str
    cpus: int
    memory: int
    disk: int
    created: float
    size: int
    stale: str | None = None


class SpareStatus(msgspec.Struct, frozen=True):
    """Forks made ahead of ``origin``: how many are wanted, and how many are ready to be taken."""

    origin: str
    wanted: int
    ready: int


class NetworkStatus(msgspec.Struct, frozen=True):
    """One network. ``machines``: how many cards are on it."""

    name: str
    mode: str
    ipv4: str | None
    ipv6: str | None
    machines: int
    parent: str | None = None
    vlan: int | None = None
    isolated: bool = False
    created: float = 0.0


class NetworkMember(msgspec.Struct, frozen=True):
    """A card on a network: whose it is, and by which ``link`` it hangs there while the machine runs."""

    machine: str
    state: str
    mac: str
    addresses: list[str]
    up: bool
    link: str


class NetworkDetails(NetworkStatus, frozen=True, kw_only=True):
    """What `network show` tells. ``fabric`` is what carries it: root, rootless, or none. ``resolver``: where the host can ask for
    the names of its machines. ``blocked``: what keeps them from the outside, and what would help."""

    id: str
    fabric: str
    resolver: str
    members: list[NetworkMember]
    blocked: list[str] = []


class PortStatus(msgspec.Struct, frozen=True):
    """A published port: ``host`` as ``127.0.0.1:8080``. ``problem``: why nothing listens there though the machine runs."""

    machine: str
    host: str
    guest_port: int
    protocol: str
    listening: bool
    problem: str | None = None


class TrafficStatus(msgspec.Struct, frozen=True):
    """What passed one card since it was hung up. ``received`` is what the machine got, ``sent`` what it sent, in bytes;
    ``rules``: how many packets each of its rules met."""

    machine: str
    network: str
    mac: str
    received: int
    sent: int
    packets_received: int
    packets_sent: int
    drops: int
    rules: dict[str, int] = {}
