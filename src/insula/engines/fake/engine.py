"""An engine that starts nothing: for tests of the verbs. Held to the same contract as QEMU (tests/contract).

It keeps machines in memory and leaves on disk what others look for: a listening ``keeper.sock``, ``status.json`` and,
once ended, ``exit.json``. Outside a test run it refuses to load.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import msgspec

from insula.engines.base import (
    DirectBoot,
    DiskBoot,
    Features,
    GuestMemory,
    Hardware,
    LaunchPlan,
    MergedLayer,
    Method,
    NewHead,
    NicPlan,
    Saved,
    SaveOrder,
)
from insula.errors import DamagedRecord, GuestError, HostLacks, MachineEnded, UsageError
from insula.host.files import remove_tree
from insula.host.sockets import listen_unix
from insula.model.shape import Dimm
from insula.resources.metrics import DiskCounts
from insula.store import names
from insula.store.machines import BoardRecord
from insula.store.names import Home

TEST_RUN: Final = "INSULA_TEST_RUN"

FEATURES: Final = Features(
    direct_boot=True,
    uefi=True,
    pause=True,
    power_button=True,
    save=True,
    nat=True,
    taps=False,
    groups=False,
    most_disks=5,
    most_nics=4,
)


class _Machine(msgspec.Struct):
    plan: LaunchPlan
    listener: socket.socket
    memory: bytes
    paused: bool
    heads: dict[str, Path]
    layers: dict[str, Path] = msgspec.field(default_factory=dict)
    links: bool = True
    cables: dict[int, bool] = msgspec.field(default_factory=dict)
    cards: dict[int, tuple[str, bool]] = msgspec.field(default_factory=dict)
    button: int = 0
    throttles: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)
    cpus: set[int] = msgspec.field(default_factory=set)
    pieces: dict[str, int] = msgspec.field(default_factory=dict)
    grip: bool = False  # the guest lets go of nothing


class FakeEngine:
    """See the module. ``end`` and ``button_presses`` are for tests."""

    name: Final = "fake"
    features: Final = FEATURES

    def __init__(self, home: Home) -> None:
        if TEST_RUN not in os.environ:
            raise RuntimeError("the fake engine is for tests only")
        self._home = home
        self._machines: dict[Path, _Machine] = {}

    def choose_board(self, arch: str, former: BoardRecord | None = None) -> BoardRecord:
        if arch != "amd64":
            raise HostLacks(f"machines of architecture {arch} cannot be run yet", code="arch_unsupported")
        return former or BoardRecord("pc-fake-1.0", "fake", "1.0", "tcg")

    def try_jail(self, plan: LaunchPlan, program: Path, words: tuple[str, ...]) -> bytes:
        raise HostLacks(f"{plan.name} is only played and has no jail for {program} {words}", code="no_jail")

    def fingerprint(self, board: BoardRecord) -> str:
        return repr(board)

    def launch(self, plan: LaunchPlan) -> None:
        if len(plan.disks) > FEATURES.most_disks or len(plan.nics) > FEATURES.most_nics:
            raise UsageError("the board has no place for so much", code="too_many_devices")
        for path in _files(plan):
            if not path.exists():
                raise DamagedRecord(f"{path} is missing")
        run = plan.run_folder
        remove_tree(run)
        run.mkdir(mode=0o700)
        listener = listen_unix(run / names.KEEPER_SOCKET)
        listener.setblocking(False)
        load = plan.load
        memory = load.memory.read_bytes() if load is not None and load.memory is not None else plan.uuid.encode()
        if load is not None and load.memory is not None:
            os.link(load.memory, run / names.MEMORY)
        heads = {disk.name: disk.head.path for disk in plan.disks}
        machine = _Machine(plan, listener, memory, load is not None, heads)
        machine.cpus = set(range(plan.cpus) if plan.present is None else plan.present)
        machine.pieces = {dimm.name: dimm.address for dimm in plan.dimms}
        self._machines[run] = machine
        self._tell(run)

    def load(self, run: Path, state: Path, memory: Path) -> None:
        machine = self._running(run)
        load = machine.plan.load
        if not machine.paused or load is None or load.state is not None or not state.exists():
            raise MachineEnded("it waits for no state", code="load_failed")
        machine.memory = memory.read_bytes()

    def compose_for(self, count: int, origin: Path, target: Path) -> bool:
        del count, origin, target  # its memory files have all that is in its memory
        return False

    def pause(self, run: Path) -> None:
        self._running(run).paused = True
        self._tell(run)

    def resume(self, run: Path) -> None:
        self._running(run).paused = False
        self._tell(run)

    def throttle(self, run: Path, disks: Collection[str], limits: Mapping[str, int]) -> None:
        self._running(run).throttles.update({disk: dict(limits) for disk in disks})

    def power_button(self, run: Path) -> None:
        self._running(run).button += 1

    def button_presses(self, run: Path) -> int:
        return self._running(run).button

    def end(self, run: Path, reason: str = "guest-shutdown") -> None:
        """The machine ends, as if by itself."""
        machine = self._running(run)
        record = {"version": 1, "time": time.time_ns(), "reason": reason, "guest": True, "last_words": ""}
        (run / names.EXIT).write_text(json.dumps(record))
        machine.listener.close()
        del self._machines[run]

    def save(self, run: Path, order: SaveOrder) -> Saved:
        machine = self._running(run)
        was_paused, machine.paused = machine.paused, True
        load = machine.plan.load
        base = load.memory if load is not None else None
        if base is not None:
            os.link(run / names.MEMORY, order.memory)
        else:
            order.memory.write_bytes(machine.memory)
        method: Method = "mapped-ram" if base is None else "changed-pages"
        if order.begun is not None:
            order.begun(Saved(method, 0, 0.0, self.hardware(run)))
        order.state.write_text("fake")
        order.at_instant()
        machine.heads.update({head.disk: head.path for head in order.heads})
        order.switched()
        machine.paused = was_paused or not order.go_on
        self._tell(run)
        return Saved(method, 0, 0.0 if machine.paused else 0.001, self.hardware(run))

    def switch_heads(self, run: Path, heads: tuple[NewHead, ...], layers: Mapping[str, Path], *, go_on: bool) -> None:
        machine = self._running(run)
        machine.heads.update({head.disk: head.path for head in heads if head.disk in layers})
        machine.paused = machine.paused and not go_on

    def put_merged(self, run: Path, merged: MergedLayer) -> None:
        self._running(run).layers[merged.disk] = merged.path

    def set_link(self, run: Path, slot: int, up: bool) -> None:
        self._running(run).cables[slot] = up

    def plug(self, run: Path, nic: NicPlan, *, offloads: bool) -> None:
        assert nic.slot is not None
        self._running(run).cards[nic.slot] = (nic.mac, offloads)

    def cards(self, run: Path) -> set[int]:
        return set(self._running(run).cards)

    def pull(self, run: Path, slot: int) -> None:
        self._running(run).cards.pop(slot, None)

    def disk_counts(self, runs: Mapping[str, Path]) -> dict[str, DiskCounts]:
        return {key: DiskCounts() for key, run in runs.items() if run in self._machines}

    def set_links(self, run: Path, up: bool) -> None:
        self._running(run).links = up

    def hardware(self, run: Path) -> Hardware:
        machine = self._running(run)
        return Hardware(tuple(sorted(machine.cpus)), dict(machine.pieces))

    def hold_on(self, run: Path) -> None:
        """From now on the guest lets go of nothing."""
        self._running(run).grip = True

    def can_pull_cpus(self, board: BoardRecord) -> bool:
        return board.accelerator != "tcg"

    def plug_cpu(self, run: Path, board: BoardRecord, cpus: int, number: int) -> None:
        del board, cpus
        self._running(run).cpus.add(number)

    def pull_cpu(self, run: Path, number: int) -> None:
        machine = self._running(run)
        if machine.grip and number in machine.cpus:
            raise GuestError(f"the guest does not let go of CPU {number}", code="cpu_in_use")
        machine.cpus.discard(number)

    def plug_memory(self, run: Path, dimm: Dimm) -> None:
        self._running(run).pieces[dimm.name] = dimm.address or (4 + dimm.slot) << 32

    def pull_memory(self, run: Path, dimm: Dimm) -> None:
        machine = self._running(run)
        if machine.grip and dimm.name in machine.pieces:
            raise GuestError("the guest does not let go of the memory that was plugged in", code="memory_in_use")
        machine.pieces.pop(dimm.name, None)

    def guest_memory(self, run: Path) -> GuestMemory | None:
        plan = self._running(run).plan
        return GuestMemory(plan.memory // 2, plan.memory * 3 // 4) if plan.board.balloon else None

    def balloon(self, run: Path, size: int, *, wait: bool = True) -> int:
        del wait
        if not self._running(run).plan.board.balloon:
            raise GuestError("the machine has no balloon", code="no_balloon")
        return size

    def _running(self, run: Path) -> _Machine:
        machine = self._machines.get(run)
        if machine is None:
            raise MachineEnded("the machine is not running", code="machine_ended")
        with contextlib.suppress(BlockingIOError):
            while True:  # whoever looked whether it is alive has gone again
                machine.listener.accept()[0].close()
        return machine

    def _tell(self, run: Path) -> None:
        state = "paused" if self._running(run).paused else "running"
        (run / names.STATUS).write_text(json.dumps({"state": state, "agent": False, "since": time.time_ns()}))


def _files(plan: LaunchPlan) -> list[Path]:
    files = [layer.path for disk in plan.disks for layer in (*disk.layers, disk.head)]
    if isinstance(plan.boot, DirectBoot):
        files += [path for path in (plan.boot.kernel, plan.boot.initrd) if path is not None]
    if isinstance(plan.boot, DiskBoot) and plan.boot.variables is not None:
        files.append(plan.boot.variables)
    return files
