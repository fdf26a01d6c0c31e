"""What an engine is: how the verbs start a machine and touch it while it runs. Capabilities are data, never ``isinstance``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from insula.store.machines import BoardRecord


@dataclass(frozen=True, slots=True)
class LayerFile:
    """One file of a disk's chain. The format is what our record says, never what the file's header claims."""

    path: Path
    format: Literal["qcow2", "raw"] = "qcow2"


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """A disk: immutable ``layers`` bottom to top (opened read-only) and ``head``, the one file the guest may write.

    ``name`` is the node's name in QEMU (``disk0``…) and ``serial`` what the guest sees (at most 20 bytes). ``unsafe``
    ignores the guest's flushes: only for machines that are thrown away.
    """

    name: str
    head: LayerFile
    layers: tuple[LayerFile, ...] = ()
    serial: str = ""
    unsafe: bool = False


@dataclass(frozen=True, slots=True)
class NicPlan:
    """A network card behind the built-in NAT."""

    mac: str
    network: Literal["nat"] = "nat"


@dataclass(frozen=True, slots=True)
class DiskBoot:
    """The guest starts from its first disk. ``variables``: the UEFI variables of this machine, written by the guest."""

    firmware: Literal["bios", "uefi"] = "bios"
    variables: Path | None = None


@dataclass(frozen=True, slots=True)
class DirectBoot:
    """The guest starts with this kernel; nothing on its disks matters for that."""

    kernel: Path
    initrd: Path | None = None
    cmdline: str = ""


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """All an engine needs to start one machine. Paths are absolute; ``memory`` is in bytes, a whole number of MiB.

    ``folder`` is the machine's own folder (its run folder is made in it); ``uuid`` and ``generation`` are UUIDs as text;
    ``on_end`` is the command that is run, outside the jail, once the machine has ended.
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
    on_end: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Features:
    """What an engine can do. The verbs ask this, never which engine it is."""

    direct_boot: bool
    uefi: bool
    pause: bool
    power_button: bool
    nat: bool
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

    def launch(self, plan: LaunchPlan) -> None:
        """Start the machine; on return its keeper serves ``run/keeper.sock`` and QEMU answers.

        After a failure nothing of it runs and the run folder is gone. Raises HostLacks or MachineEnded (with the last words).
        """
        ...

    def pause(self, run: Path) -> None:
        """Stop the guest's CPUs. Pausing a paused machine does nothing; after a failure it runs on."""
        ...

    def resume(self, run: Path) -> None:
        """Let the guest's CPUs run. Resuming a running machine does nothing."""
        ...

    def power_button(self, run: Path) -> None:
        """Press the power button (ACPI); returns at once, and what the guest does about it is its own affair."""
        ...
