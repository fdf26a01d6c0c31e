"""A machine that goes on from a state, by hand: QEMU with the very words that Insula gives it, and nothing around it: no jail, no
keeper, no record, no identity. And the best way to take such a state by hand."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.hand import AgentClient
from insula.engines.base import LoadPlan, NicPlan
from insula.engines.qemu.board import JAIL_INITRD, JAIL_KERNEL, JAIL_MEMORY, build_board
from insula.engines.qemu.cmdline import build_argv
from insula.engines.qemu.descriptors import Descriptors, open_for_qemu
from insula.engines.qemu.heads import DescriptorSets
from insula.engines.qemu.memory import MAIN, block_pages, find_main, read_blocks
from insula.engines.qemu.migrate import load
from insula.engines.qemu.monitor import resume
from insula.engines.qemu.qmp import Event, Monitor
from insula.engines.qemu.stream import compose
from insula.networks.passt import start_passt
from insula.operations.start import launch_plan
from insula.store import names
from insula.store.machines import MachineRecord, read_machine, write_machine
from insula.store.snapshots import SnapshotRecord, read_snapshot

_PATIENCE = 300.0
_CAPABILITIES = ("mapped-ram", "multifd", "events")
_PAUSE = 5  # milliseconds QEMU may let the guest stand for the last of its memory, as Insula asks for


def _open_tap() -> int:
    """A tap that leads nowhere, for a state whose network card needs one; it goes with its descriptor."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    # linux/if_tun.h: TUNSETIFF; a tap, no packet information, with virtio's header; the kernel chooses the name
    fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", b"insh%d", 0x0002 | 0x1000 | 0x4000))
    return device


@dataclass(frozen=True)
class HandState:
    """What a machine goes on from: ``memory`` is mapped at ``offset``, ``state`` loaded; of each disk the layers."""

    memory: Path
    offset: int
    state: Path
    disks: tuple[tuple[Path, ...], ...]


def state_of(machine: Path, name: str) -> HandState:
    """A snapshot of one of our machines, whose folder this is."""
    snapshot = machine / names.SNAPSHOTS / name
    record: SnapshotRecord = read_snapshot(snapshot)
    assert record.memory is not None
    assert record.memory.offset is not None
    disks = tuple(tuple(machine / layer for layer in disk.layers) for disk in record.disks)
    return HandState(snapshot / names.MEMORY, record.memory.offset, snapshot / names.STATE, disks)


class HandGuest(AgentClient):
    """A machine with the hardware of one of ours, whose folder is ``like``: booted, or going on from ``state``.

    ``folder`` is an empty one to work in; with ``network`` its cards have passt at their other end, else nobody. When this
    returns the program ``true`` has run inside. A context manager; at its end QEMU is killed.
    """

    def __init__(self, folder: Path, like: Path, state: HandState | None = None, *, network: bool = False) -> None:
        self._folder = folder
        self._taken = 0
        self._qmp = folder / names.RUN / names.QMP_SOCKET
        self._record = _prepare(folder, like, state)
        self._chain = [folder / layer for layer in self._record.disks[0].layers]  # of its disk, and then the head
        self._chain.append(folder / self._record.disks[0].head)
        source = LoadPlan(state.state, state.memory, state.offset) if state is not None else None
        offloads = self._record.board is not None and self._record.board.offloads
        nics = tuple(NicPlan(nic.mac, _open_tap() if offloads else None, nic.slot) for nic in self._record.nics)
        plan = launch_plan(folder, self._record, nics, source)
        with Descriptors() as descriptors:
            board = build_board(plan)
            open_for_qemu(descriptors, plan, board)
            for nic in nics:
                if nic.tap is not None:
                    descriptors.qemu[f"net{nic.slot}"] = nic.tap
                elif network:
                    descriptors.qemu[f"net{nic.slot}"] = start_passt(None).detach()
                else:
                    descriptors.pair(f"net{nic.slot}", f"net{nic.slot}")
            words = build_argv(board, descriptors.qemu, "qemu-system-x86_64")
            shown = {JAIL_KERNEL: f"{folder}/{self._record.boot.kernel}", JAIL_INITRD: f"{folder}/{self._record.boot.initrd}"}
            if state is not None:
                shown[JAIL_MEMORY] = str(state.memory)
            for inside, outside in shown.items():
                words = [word.replace(inside, outside) for word in words]
            self._kept = [os.dup(number) for name, number in descriptors.keeper.items() if name != "agent"]
            super().__init__(socket.socket(fileno=os.dup(descriptors.keeper["agent"])))
            with (folder / "words").open("wb") as said:
                self._qemu = subprocess.Popen(
                    words, pass_fds=list(descriptors.qemu.values()), stdin=subprocess.DEVNULL, stdout=said, stderr=said
                )
        try:
            if state is not None:
                load(self._qmp, state.state)
                resume(self._qmp)
            self.greet()
            self.wait("true")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> HandGuest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._qemu.kill()
        self._qemu.wait()
        for descriptor in self._kept:
            os.close(descriptor)
        self._kept.clear()
        super().close()

    @property
    def pid(self) -> int:
        """Of its QEMU."""
        return self._qemu.pid

    def stand(self, still: bool) -> None:
        """Stop its CPUs, or let them go on."""
        with Monitor(self._qmp) as monitor:
            monitor.execute("stop" if still else "cont")

    def snapshot(self) -> HandState:
        """The best sequence known: memory to a file at fixed offsets while the guest runs; at its end the guest stands; the disk
        goes on in a new overlay, the devices are written, the guest goes on. Then devices and small blocks are put together."""
        self._taken += 1
        memory, state, head = (self._folder / f"{what}-{self._taken}" for what in ("memory", "state", "head"))
        depth = len(self._chain)
        _make_overlay(head, self._record.disks[0].size)
        with Monitor(self._qmp, _PATIENCE) as monitor, contextlib.closing(DescriptorSets(monitor)) as sets:
            file = {"driver": "file", "filename": str(head)}
            overlay = {"driver": "qcow2", "node-name": f"disk0-{depth}", "file": file, "backing": None}
            monitor.execute("blockdev-add", overlay | {"discard": "unmap", "detect-zeroes": "unmap"})
            _write_memory(monitor, sets.open(memory, os.O_CREAT | os.O_EXCL | os.O_RDWR, os.O_WRONLY))
            snapshot = {"node": f"disk0-{depth - 1}", "overlay": f"disk0-{depth}"}
            monitor.execute("transaction", {"actions": [{"type": "blockdev-snapshot", "data": snapshot}]})
            monitor.execute("xen-save-devices-state", {"filename": str(state), "live": False})
            monitor.execute("cont")
        assert self._record.board is not None
        offset = _put_together(memory, state, self._record.spec.memory, self._record.board.machine)
        layers = tuple(self._chain)
        self._chain.append(head)
        return HandState(memory, offset, state, (layers,))


def restore(folder: Path, like: Path, state: HandState) -> float:
    """Seconds until a program ran in a machine that goes on from ``state``; arguments as of `HandGuest`."""
    started = time.perf_counter()
    with HandGuest(folder, like, state):
        return time.perf_counter() - started


def _prepare(folder: Path, like: Path, state: HandState | None) -> MachineRecord:
    """The machine's folder, as far as QEMU needs one, and what `launch_plan` reads."""
    record = read_machine(like)
    for place in (names.LAYERS, names.DISKS, names.RUN):
        (folder / place).mkdir(parents=True)
    disks = []
    for index, disk in enumerate(record.disks):
        layers: list[str] = []
        for layer in state.disks[index] if state is not None else [like / each for each in disk.layers]:
            layers.append(f"{names.LAYERS}/{len(layers)}-{layer.name}")
            (folder / layers[-1]).hardlink_to(layer)
        head = f"{names.DISKS}/{disk.name}.qcow2"
        _make_overlay(folder / head, disk.size)
        disks.append(msgspec.structs.replace(disk, layers=layers, head=head))
    for path in (record.boot.kernel, record.boot.initrd):
        if path is not None:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).hardlink_to(like / path)
    record = msgspec.structs.replace(record, disks=disks)
    write_machine(folder, record)
    return record


def _make_overlay(path: Path, size: int) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size)], check=True)


def _write_memory(monitor: Monitor, path: str) -> None:
    """To a file that we have open, too: a QEMU that is the last to close it is held up by ext4. On return the guest stands, and
    QEMU has put away what it wrote with."""
    _allow(monitor, True)
    monitor.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40, "downtime-limit": _PAUSE, "multifd-channels": 2})
    monitor.execute("migrate", {"uri": f"file:{path}"})
    event = monitor.wait_event(_is_over, _PATIENCE)
    assert event is not None
    assert event.data["status"] == "completed", event
    while any(instance["type"] == "migration" for instance in monitor.execute("query-yank")):
        time.sleep(0.001)  # of its end there is no event
    _allow(monitor, False)


def _allow(monitor: Monitor, state: bool) -> None:
    monitor.execute("migrate-set-capabilities", {"capabilities": [{"capability": one, "state": state} for one in _CAPABILITIES]})


def _is_over(event: Event) -> bool:
    return event.name == "MIGRATION" and event.data.get("status") in ("completed", "failed", "cancelled")


def _put_together(memory: Path, state: Path, size: int, machine: str) -> int:
    """Make ``state`` loadable beside a mapped ``memory``; where in that file the guest's memory is."""
    descriptor = os.open(memory, os.O_RDONLY)
    try:
        blocks = read_blocks(descriptor)
        others = [(block.name, block.length, block_pages(descriptor, block)) for block in blocks if block.name != MAIN]
        state.write_bytes(compose(state.read_bytes(), machine, others))
        return find_main(blocks, size).pages
    finally:
        os.close(descriptor)
