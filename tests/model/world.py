"""Machines, their guests and QEMUs over the simulated file system, and what has been promised to whom.

Every write of any guest has a value of its own (the world's tick), and the last one stands in its memory: memory with value *n*
fits disks (variables count as one) if and only if they look as they did right after write *n*.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tests.model.filesystem import Chooser, Files, Inode

View = dict[tuple[str, int], int]  # (disk, block) -> value
Promise = dict[tuple[str, int], list[int | None]]  # what each block may be after a power cut, the latest last
VARIABLES = "variables"
RECORD, MANIFEST, JOURNAL = "machine.json", "snapshot.json", "journal.json"


class Violation(AssertionError):
    """The ledger's promise is broken."""


@dataclass(frozen=True)
class Disk:
    """As `DiskRecord`: paths relative to the machine's folder. ``runs``: merged layers that the QEMU that runs took in, and how
    many fewer there are by each."""

    name: str
    layers: tuple[str, ...]
    head: str
    runs: tuple[tuple[str, int], ...] = ()

    def number(self, place: int) -> int:
        """Under which number QEMU knows what is at this place, counted from when it was launched."""
        return place + sum(fewer for layer, fewer in self.runs if layer in self.layers[:place])


@dataclass(frozen=True)
class Record:
    """As `MachineRecord`, what the ledger needs of it."""

    disks: tuple[Disk, ...]
    variables: str


@dataclass(frozen=True)
class Manifest:
    """As a snapshot's record. ``disks`` name the heads too: a suspend's memory fits these alone."""

    instant: int
    disks: tuple[Disk, ...]
    memory: bool


@dataclass
class Qemu:
    """A QEMU and its keeper, its guest inside. ``when_maker_dies`` is what the keeper does to it when the verb at work dies."""

    machine: str
    run: Inode
    heads: dict[str, Inode]
    chains: dict[str, tuple[Inode, ...]]
    nodes: dict[str, tuple[int | str, ...]]  # what it calls the parts of each chain
    variables: Inode
    ram: int
    lineage: int
    standing: bool = True
    paused: bool = False  # by its user
    when_maker_dies: Literal["stay", "resume", "end"] = "stay"


@dataclass
class World:
    files: Files = field(default_factory=Files)
    qemus: list[Qemu] = field(default_factory=list)
    tick: int = 0
    history: dict[int, View] = field(default_factory=dict)  # what disks look like after each write
    instants: dict[int, tuple[int | None, View]] = field(default_factory=dict)  # what each snapshot is of
    frozen: dict[Inode, dict[Any, Any]] = field(default_factory=dict)  # published layers
    lineages: list[Promise] = field(default_factory=list)
    legit: dict[str, tuple[int, ...]] = field(default_factory=dict)  # the lineages a machine may be found with
    present: set[str] = field(default_factory=set)  # machines, and MACHINE@SNAP, that must be there
    maybe: set[str] = field(default_factory=set)  # those that may be
    suspended: dict[str, int] = field(default_factory=dict)  # machine -> the instant that must be kept

    def copy(self) -> World:
        return World(
            self.files.copy(), [replace(qemu, heads=dict(qemu.heads)) for qemu in self.qemus], self.tick, dict(self.history),
            dict(self.instants), dict(self.frozen), [{key: list(may) for key, may in one.items()} for one in self.lineages],
            dict(self.legit), set(self.present), set(self.maybe), dict(self.suspended),
        )  # fmt: skip

    # -- what is there -------------------------------------------------------------------------------------------------
    def count(self) -> int:
        self.tick += 1
        return self.tick

    def record(self, folder: str) -> Record:
        record = self._load(f"{folder}/{RECORD}")
        if not isinstance(record, Record):
            raise Violation(f"{folder}/{RECORD} is damaged")
        return record

    def manifest(self, folder: str) -> Manifest:
        manifest = self._load(f"{folder}/{MANIFEST}")
        if not isinstance(manifest, Manifest):
            raise Violation(f"{folder}/{MANIFEST} is damaged")
        return manifest

    def _load(self, path: str) -> object:
        """What a record's file holds; None when it never got to the disk."""
        if not self.files.exists(path):
            raise Violation(f"{path} is missing")
        return self.files.read(path).get("json")

    def open(self, folder: str, path: str) -> Inode:
        inode = self.files.find(f"{folder}/{path}")
        if inode is None:
            raise Violation(f"{folder} needs {path}, which is missing")
        return inode

    def view(self, chains: dict[str, tuple[Inode, ...]], variables: Inode) -> View:
        """What a guest sees through these chains."""
        seen: View = {(VARIABLES, key): value for key, value in self.files.content(variables).items()}
        for disk, chain in chains.items():
            for inode in chain:
                seen |= {(disk, block): value for block, value in self.files.content(inode).items()}
        return seen

    def view_of(self, folder: str, disks: tuple[Disk, ...], variables: str, *, heads: bool) -> View:
        """What the files named so hold. Raises Violation when one is missing."""
        paths = {disk.name: (*disk.layers, disk.head) if heads else disk.layers for disk in disks}
        chains = {name: tuple(self.open(folder, path) for path in chain) for name, chain in paths.items()}
        return self.view(chains, self.open(folder, variables))

    def qemu(self, folder: str, run: str = "run") -> Qemu | None:
        """The live QEMU whose run folder this is."""
        inode = self.files.find(f"{folder}/{run}")
        return next((qemu for qemu in self.qemus if qemu.run == inode), None)

    # -- QEMU ----------------------------------------------------------------------------------------------------------
    def launch(self, machine: str, folder: str, run: str, plan: Record, memory: str | None, lineage: int | None) -> Qemu:
        """Start a QEMU that stands, its memory loaded from the snapshot's folder ``memory`` or just booted."""
        self.files.mkdir(f"{folder}/{run}")
        heads = {disk.name: self.open(folder, disk.head) for disk in plan.disks}
        chains = {disk.name: (*(self.open(folder, path) for path in disk.layers), heads[disk.name]) for disk in plan.disks}
        variables = self.open(folder, plan.variables)
        for inode in (*heads.values(), variables):
            if inode in self.frozen or self.files.nodes[inode].readonly:
                raise Violation(f"{machine} would write into a published file")
            if any(inode in (*other.heads.values(), other.variables) for other in self.qemus):
                raise Violation(f"two QEMUs have a head of {machine} open")
        view = self.view(chains, variables)
        if memory is None:
            ram = self.count()
            self.history[ram] = view
        else:
            ram = self.memory_in(memory)
            if self.history[ram] != view:
                raise Violation(f"{machine}: memory of write {ram} is loaded onto other disks: {view}, not {self.history[ram]}")
        lineage = self.find_lineage(machine, view) if lineage is None else lineage
        for key, may in self.lineages[lineage].items():  # what came after was lost in a power cut
            del may[may.index(view.get(key)) + 1 :]
        nodes: dict[str, tuple[int | str, ...]] = {name: tuple(range(len(chain))) for name, chain in chains.items()}
        self.qemus.append(Qemu(machine, self.files.inode(f"{folder}/{run}"), heads, chains, nodes, variables, ram, lineage))
        return self.qemus[-1]

    def memory_in(self, folder: str) -> int:
        """The value of the memory in a snapshot's folder, which must be whole. Raises Violation."""
        pages = set(self.files.read(f"{folder}/memory").items()) if self.files.exists(f"{folder}/memory") else set()
        ram = next((value for _, value in pages), 0)
        state = self.files.read(f"{folder}/state") if self.files.exists(f"{folder}/state") else {}
        if pages != {(0, ram), (1, ram)} or state != {0: ram}:
            raise Violation(f"{folder} holds memory {pages} and state {state}")
        return ram

    def switch(self, qemu: Qemu, folder: str, disks: tuple[Disk, ...]) -> None:
        """One transaction: all disks write to new heads from now on. QEMU flushes the old ones first."""
        for disk in disks:
            head = self.open(folder, disk.head)
            if qemu.heads[disk.name] != head:
                self.files.fsync(qemu.heads[disk.name])
                qemu.heads[disk.name] = head
                number = disk.number(len(disk.layers))
                if qemu.nodes[disk.name][-1] != number - 1:
                    raise Violation(
                        f"{folder}: {number} is to lie upon the head of {disk.name}, which is {qemu.nodes[disk.name]}"
                    )
                qemu.chains = qemu.chains | {disk.name: (*qemu.chains[disk.name], head)}
                qemu.nodes = qemu.nodes | {disk.name: (*qemu.nodes[disk.name], number)}

    def end(self, qemu: Qemu | None) -> None:
        self.qemus = [other for other in self.qemus if other is not qemu]

    # -- guests --------------------------------------------------------------------------------------------------------
    def guest_writes(self, qemu: Qemu) -> None:
        """One write to some disk, or to the firmware's variables."""
        if qemu.standing or qemu.paused:
            return
        if any(other is not qemu and other.machine == qemu.machine and not other.standing for other in self.qemus):
            raise Violation(f"two guests of {qemu.machine} run at once")
        value = self.count()
        names = [VARIABLES, *sorted(qemu.heads)]
        disk = names[value * value // 3 % len(names)]  # no pattern that goes with the steps of verbs
        block = 0 if disk == VARIABLES else value % 3
        self.files.write(qemu.variables if disk == VARIABLES else qemu.heads[disk], {block: value})
        self.history[value] = self.history[qemu.ram] | {(disk, block): value}
        qemu.ram = value
        self.lineages[qemu.lineage].setdefault((disk, block), [None]).append(value)
        self.legit[qemu.machine] = (qemu.lineage,)
        self.suspended.pop(qemu.machine, None)

    def guest_flushes(self, qemu: Qemu) -> None:
        """Once this is answered, all that was written is promised to be there for ever."""
        if qemu.standing or qemu.paused:
            return
        for inode in (*qemu.heads.values(), qemu.variables):
            self.files.fsync(inode)
        promise = self.lineages[qemu.lineage]
        self.lineages[qemu.lineage] = {key: may[-1:] for key, may in promise.items()}
        self.present.add(qemu.machine)

    def guests_live(self) -> None:
        """A little of a guest's life, everywhere: something flushed, then something not."""
        for qemu in list(self.qemus):
            self.guest_writes(qemu)
            self.guest_flushes(qemu)
            self.guest_writes(qemu)

    def new_lineage(self, view: View) -> int:
        self.lineages.append({key: [value] for key, value in view.items()})
        return len(self.lineages) - 1

    def find_lineage(self, machine: str, view: View) -> int:
        """Whose life these disks hold. Raises Violation when nobody was promised such disks."""
        for lineage in reversed(self.legit[machine]):
            promise = self.lineages[lineage]
            if all(view.get(key) in promise.get(key, [None]) for key in view.keys() | promise.keys()):
                return lineage
        raise Violation(
            f"{machine} has lost what its guest was promised: {view}, not {[self.lineages[i] for i in self.legit[machine]]}"
        )

    # -- faults --------------------------------------------------------------------------------------------------------
    def maker_dies(self) -> None:
        """The verb at work is killed; keepers do at once what they were told for this case."""
        for qemu in list(self.qemus):
            if qemu.when_maker_dies == "end":
                self.end(qemu)
            elif qemu.when_maker_dies == "resume":
                qemu.standing = False
            qemu.when_maker_dies = "stay"

    def cut_power(self, survives: Chooser) -> None:
        self.qemus = []
        self.files.cut_power(survives)
