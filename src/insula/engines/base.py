"""What an engine is: how the verbs start a machine and touch it while it runs. Capabilities are data, never ``isinstance``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from insula.model.shape import Dimm
from insula.model.spec import MOST_DISK
from insula.resources.metrics import DiskCounts
from insula.store import names
from insula.store.machines import BoardRecord


class LayerFile(msgspec.Struct, frozen=True):
    """One file of a disk's chain. The format is what our record says, never what the file's header claims."""

    path: Path
    format: Literal["qcow2", "raw"] = "qcow2"


class DiskPlan(msgspec.Struct, frozen=True):
    """A disk: immutable ``layers`` bottom to top (opened read-only) and ``head``, the one file the guest may write.

    ``name`` is the node's name in QEMU (``disk0``…) and ``serial`` what the guest sees (at most 20 bytes). ``unsafe``
    ignores the guest's flushes: only for machines that are thrown away. ``size``: the bytes the guest sees, or as many as any
    disk may have.
    """

    name: str
    head: LayerFile
    layers: tuple[LayerFile, ...] = ()
    serial: str = ""
    unsafe: bool = False
    size: int = MOST_DISK


class NicPlan(msgspec.Struct, frozen=True):
    """A network card, on the place ``slot`` of the board (None: the one it has in the plan).

    ``tap``: an open descriptor of the tap it hangs on, which stays the caller's; None: behind a passt of its own.
    """

    mac: str
    tap: int | None = None
    slot: int | None = None


class DiskBoot(msgspec.Struct, frozen=True):
    """The guest starts from its first disk. ``variables``: the UEFI variables of this machine, written by the guest."""

    firmware: Literal["bios", "uefi"] = "bios"
    variables: Path | None = None


class DirectBoot(msgspec.Struct, frozen=True):
    """The guest starts with this kernel; nothing on its disks matters for that."""

    kernel: Path
    initrd: Path | None = None
    cmdline: str = ""


class LoadPlan(msgspec.Struct, frozen=True):
    """A state to go on from: ``state`` as `Engine.save` wrote it (None: it comes later, by `Engine.load`), and the file that
    is mapped as the guest's memory, whose pages begin at ``offset`` (``memory`` None: the state holds them too).
    ``pieces``: where in the file, by their names, plugged pieces of memory are; what of others is not in it is in the state."""

    state: Path | None
    memory: Path | None = None
    offset: int = 0
    pieces: Mapping[str, int] = {}


class LaunchPlan(msgspec.Struct, frozen=True):
    """All an engine needs to start one machine. Paths are absolute; ``memory`` is in bytes, a whole number of MiB.

    ``folder`` is the machine's own folder (its run folder, called ``run``, is made in it); ``uuid`` and ``generation`` are UUIDs
    as text; ``on_end`` is the command that is run, outside the jail, once the machine has ended. ``display`` is a graphics card
    that nobody looks at yet, ``tpm`` the folder its TPM is kept in, if it has one. ``group``: the name of the control group that
    its processes enter by ``entrances``, open descriptors that stay the caller's; it is noted in the run folder. With ``load``
    the machine does not boot but goes on, once it is told to resume; with
    the CPUs numbered ``present`` (None: with ``cpus``, which is how many it booted with) and the pieces ``dimms`` beside the
    ``memory`` it booted with. ``insecure``: where this host can have no whole jail, start it with what of one can be had, and
    note that in the run folder.
    ``mergeable``: the kernel may make one of pages that this machine and others have alike.
    """

    name: str
    folder: Path
    uuid: str
    generation: str
    cpus: int
    memory: int
    board: BoardRecord
    boot: DiskBoot | DirectBoot
    disks: tuple[DiskPlan, ...] = ()
    nics: tuple[NicPlan, ...] = ()
    display: Literal["none", "vga"] = "none"
    tpm: Path | None = None
    on_end: tuple[str, ...] = ()
    load: LoadPlan | None = None
    present: tuple[int, ...] | None = None
    dimms: tuple[Dimm, ...] = ()
    run: str = names.RUN
    group: str = ""
    insecure: bool = False
    entrances: tuple[int, ...] = ()
    mergeable: bool = False

    @property
    def run_folder(self) -> Path:
        return self.folder / self.run


class NewHead(msgspec.Struct, frozen=True):
    """An empty overlay that takes the place of a disk's head. ``disk`` is its node (``disk0``…), ``depth`` how many layers are
    below it then, the former head being the last of them."""

    disk: str
    depth: int
    path: Path


class MergedLayer(msgspec.Struct, frozen=True):
    """A file that is to take the place of several layers of a running machine's disk and means the same.

    Layers have numbers from when the machine was started, or they were added: their nodes are ``disk0-NUMBER``. Merged ones have
    their ``token`` instead: an ``m`` and 8 hexadecimal digits. It comes to lie between ``below`` and ``above`` (their numbers or
    tokens), in the place of those with the numbers from ``lowest`` on that are less than ``end``.
    """

    disk: str
    below: int | str | None
    above: int | str
    lowest: int
    end: int
    token: str
    path: Path


class SaveOrder(msgspec.Struct, frozen=True):
    """A machine's state is to be written to ``memory`` and ``state``, two files that do not exist yet, and at the same instant
    its disks are to go on in ``heads``.

    ``uuid`` is the machine's as in its `LaunchPlan`, ``machine`` the versioned machine type, ``size`` the guest's memory in
    bytes; ``layers`` are the former heads' files, by disk, under the names they keep. ``at_instant`` is called while the guest
    stands still, ``switched`` as soon as the disks are in their new heads; then the guest goes on if ``go_on``, unless it was
    paused before. ``must_have``: the CPUs without which it cannot be saved. ``begun`` is called, the guest running still, when
    ``memory`` has its full size and may be mapped, though not be used before `Engine.save` returns; with what that will return,
    the pause aside, unless all is done in another way after all. It never raises.
    """

    uuid: str
    memory: Path
    state: Path
    machine: str
    size: int
    heads: tuple[NewHead, ...]
    layers: Mapping[str, Path]
    at_instant: Callable[[], None]
    switched: Callable[[], None]
    go_on: bool = True
    must_have: tuple[int, ...] = ()
    begun: Callable[[Saved], None] | None = None


# How a running machine's memory is taken. ``changed-pages``: the memory file is a link to the one the machine was loaded from,
# and what changed since is in the state.
Method = Literal["changed-pages", "mapped-ram", "background-snapshot", "stream"]


class GuestMemory(msgspec.Struct, frozen=True):
    """What a guest says of its memory, in bytes: what it has not given to anybody (``free``), and what it could give to somebody
    without taking it from its programs (``available``). Anything at all, where a guest lies."""

    free: int
    available: int


class Hardware(msgspec.Struct, frozen=True):
    """What a running machine has: its CPUs by number, and, by name, the pieces of memory plugged in with their addresses. A guest
    may let go of either by itself."""

    cpus: tuple[int, ...]
    pieces: Mapping[str, int] = {}


class Saved(msgspec.Struct, frozen=True):
    """What `Engine.save` did: the ``method``, where the pages begin in the memory file (None: they are in the state),
    how long the guest stood still, in seconds, and with what it must go on."""

    method: Method
    offset: int | None
    pause: float
    hardware: Hardware | None = None


class Features(msgspec.Struct, frozen=True):
    """What an engine can do. The verbs ask this, never which engine it is."""

    direct_boot: bool
    uefi: bool
    pause: bool
    power_button: bool
    save: bool
    nat: bool
    taps: bool
    groups: bool
    most_disks: int
    most_nics: int


class Engine(Protocol):
    """Starts machines and touches running ones. Calls block; each names what holds after it failed.

    ``run`` is always the machine's run folder. A machine that is not running answers with MachineEnded.
    """

    @property
    def name(self) -> str: ...

    @property
    def features(self) -> Features: ...

    def choose_board(self, arch: str, former: BoardRecord | None = None) -> BoardRecord:
        """The hardware a machine of ``arch`` (Debian's name) gets at its next start.

        ``former`` is what it had: its machine type stays, and its CPU model stays while the accelerator does.
        Raises HostLacks when this host cannot run such a machine.
        """
        ...

    def try_jail(self, plan: LaunchPlan, program: Path, words: tuple[str, ...]) -> bytes:
        """Run a program, a static one, where ``plan`` would have the process that runs the guest: as the same user, in the same
        jail, handed the same. Returns what it wrote until it ended. Raises HostLacks, DamagedRecord."""
        ...

    def fingerprint(self, board: BoardRecord) -> str:
        """Changes with whatever a saved state of a machine on ``board`` depends on: this program's build, the CPU it shows the
        guest, and where the accelerator shows the host's own, that and its microcode."""
        ...

    def launch(self, plan: LaunchPlan) -> None:
        """Start the machine; on return its keeper serves ``run/keeper.sock`` and QEMU answers.

        After a failure nothing of it runs and the run folder is gone. Raises HostLacks or MachineEnded (with the last words).
        """
        ...

    def load(self, run: Path, state: Path, memory: Path) -> None:
        """Let a machine that was launched without its state load it now that it is complete, and ``memory``, which it has mapped,
        too; the guest stands. Raises MachineEnded (``load_failed``), HostLacks (``no_space``)."""
        ...

    def compose_for(self, count: int, origin: Path, target: Path) -> bool:
        """For ``count`` machines that are to go on from the files ``memory`` and ``state`` in the folder ``origin``, which `save`
        wrote as ``changed-pages``: make such files in the folder ``target``, to be used in their place, at the same offset. That
        memory, which they share, has all changes in it, that state has none. Returns False, and makes neither, where that would
        be more than each having its own.

        Raises OSError, DamagedRecord; what it made is then left behind.
        """
        ...

    def pause(self, run: Path) -> None:
        """Stop the guest's CPUs. Pausing a paused machine does nothing; after a failure it runs on."""
        ...

    def resume(self, run: Path) -> None:
        """Let the guest's CPUs run. Resuming a running machine does nothing."""
        ...

    def throttle(self, run: Path, disks: Collection[str], limits: Mapping[str, int]) -> None:
        """Hold these disks of a running machine, each by itself, to ``limits`` (resources/throttles.py)."""
        ...

    def power_button(self, run: Path) -> None:
        """Press the power button (ACPI); returns at once, and what the guest does about it is its own affair."""
        ...

    def save(self, run: Path, order: SaveOrder) -> Saved:
        """Write the machine's state, all of one instant. The files are complete but not yet on the disk for sure.

        After a failure a guest that ran runs on, the files are worth nothing, and the disks are where they were unless
        ``order.switched`` was called. After MachineEnded, or when the engine does not answer (``monitor_timeout``), nobody knows
        about the disks: see `switch_heads`.
        """
        ...

    def switch_heads(self, run: Path, heads: tuple[NewHead, ...], layers: Mapping[str, Path], *, go_on: bool) -> None:
        """Let the disks go on in ``heads`` if they do not yet, ``layers`` as in `SaveOrder`; and with ``go_on`` the guest."""
        ...

    def put_merged(self, run: Path, merged: MergedLayer) -> None:
        """Let a disk read from a merged layer what it read from several. After a failure it reads from those, or from either."""
        ...

    def disk_counts(self, runs: Mapping[str, Path]) -> dict[str, DiskCounts]:
        """What the disks of many machines count, by the same keys as their run folders, asked side by side. Never waits long:
        those that do not answer at once, or are not running, are left out."""
        ...

    def set_links(self, run: Path, up: bool) -> None:
        """Plug or unplug the cables of all network cards."""
        ...

    def set_link(self, run: Path, slot: int, up: bool) -> None:
        """Plug or unplug the cable of the network card on ``slot``."""
        ...

    def plug(self, run: Path, nic: NicPlan, *, offloads: bool) -> None:
        """Plug in a network card, which has a tap and a slot. After a failure there is none."""
        ...

    def cards(self, run: Path) -> set[int]:
        """The slots of the network cards that a running machine has."""
        ...

    def pull(self, run: Path, slot: int) -> None:
        """Pull a network card out; one that is gone is fine. Raises GuestError (``card_in_use``): the guest holds it."""
        ...

    def hardware(self, run: Path) -> Hardware:
        """What CPUs and pieces of memory a running machine has."""
        ...

    def can_pull_cpus(self, board: BoardRecord) -> bool:
        """Whether a machine on ``board`` from which a CPU was pulled can still be saved."""
        ...

    def plug_cpu(self, run: Path, board: BoardRecord, cpus: int, number: int) -> None:
        """Plug in a CPU, of those the board of a machine that booted with ``cpus`` has room for. Whether the guest takes it
        into use is the guest's affair."""
        ...

    def pull_cpu(self, run: Path, number: int) -> None:
        """Pull a CPU out; one that is gone is fine. Raises GuestError (``cpu_in_use``): the guest does not let go of it."""
        ...

    def plug_memory(self, run: Path, dimm: Dimm) -> None:
        """Plug in a piece of memory, which is the machine's own also where its other memory is a mapped file. After a failure
        there is none. Raises HostLacks (``no_memory``)."""
        ...

    def pull_memory(self, run: Path, dimm: Dimm) -> None:
        """Pull a piece of memory out; one that is gone is fine. Raises GuestError (``memory_in_use``): the guest does not let
        go."""
        ...

    def guest_memory(self, run: Path) -> GuestMemory | None:
        """What the guest says of its memory; None when it has no balloon, or does not say."""
        ...

    def balloon(self, run: Path, size: int, *, wait: bool = True) -> int:
        """Ask the guest to do with ``size`` bytes of all its memory; what it has come to have, after a while. It may take memory
        back later rather than end programs. Raises GuestError (``no_balloon``)."""
        ...
