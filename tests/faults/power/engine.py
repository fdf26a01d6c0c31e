"""The engine of the doomed host: machines are plain writers on real disks.

Each machine has QEMU's block layer for itself (qemu-storage-daemon) on the chain of files its record names, opened in the board's
words, and a thread that writes numbered blocks to it and flushes, as a guest would. Its "memory" is what that thread knows of its
disk, so memory and disk of a snapshot can be held against each other. What is acknowledged to the guest goes into the stream
of marks.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import socket
import subprocess
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from insula.engines.base import Features, GuestMemory, Hardware, LaunchPlan, MergedLayer, NewHead, NicPlan, Saved, SaveOrder
from insula.engines.fake.engine import FEATURES
from insula.errors import InsulaError, MachineEnded
from insula.host.files import remove_tree
from insula.model.shape import Dimm
from insula.resources.metrics import DiskCounts
from insula.store import names
from insula.store.machines import BoardRecord
from tests.faults.power.blocks import COUNT, Disk, Map, content, number_of
from tests.faults.power.keeper import Keeper
from tests.faults.power.marks import Marker

_PACE: Final = 0.02  # seconds between a guest's writes
_MEMORY: Final = 1 << 18  # bytes of a memory file; what comes after the map is noise
_PATIENCE: Final = 60.0


class WriterEngine:
    name: Final = "writers"
    features: Final[Features] = FEATURES

    def __init__(self, marker: Marker, board: BoardRecord, sockets: Path, seed: int, *, lying: bool = False) -> None:
        """``lying``: the guests' flushes are answered and not done."""
        self.marker, self.sockets, self.lying = marker, sockets, lying
        self.numbers = itertools.count(1)
        self.lives = itertools.count(1)
        self.chance = random.Random(seed)
        self.maps: dict[str, Map] = {}  # what each machine's disk was acknowledged to hold, by UUID
        self._board = board
        self._machines: dict[tuple[int, int], Life] = {}

    def choose_board(self, arch: str, former: BoardRecord | None = None) -> BoardRecord:
        return former or self._board

    def try_jail(self, plan: LaunchPlan, program: Path, words: tuple[str, ...]) -> bytes:
        raise NotImplementedError

    def fingerprint(self, board: BoardRecord) -> str:
        return repr(board)

    def launch(self, plan: LaunchPlan) -> None:
        remove_tree(plan.run_folder)
        plan.run_folder.mkdir(mode=0o700)
        self._machines[_key(plan.run_folder)] = Life(self, plan)

    def load(self, run: Path, state: Path, memory: Path) -> None:
        raise AssertionError("nobody here can map memory that is being written")

    def compose_for(self, count: int, origin: Path, target: Path) -> bool:
        del count, origin, target  # no state here is one of changes
        return False

    def pause(self, run: Path) -> None:
        self._life(run).pause()

    def resume(self, run: Path) -> None:
        self._life(run).resume()

    def throttle(self, run: Path, disks: Collection[str], limits: Mapping[str, int]) -> None:
        raise AssertionError("nobody is limited here")

    def power_button(self, run: Path) -> None:
        self._life(run).end("guest-shutdown")

    def save(self, run: Path, order: SaveOrder) -> Saved:
        return self._life(run).save(order)

    def switch_heads(self, run: Path, heads: tuple[NewHead, ...], layers: Mapping[str, Path], *, go_on: bool) -> None:
        raise AssertionError("no verb dies while its machine lives here")

    def put_merged(self, run: Path, merged: MergedLayer) -> None:
        raise AssertionError("nobody merges here")

    def disk_counts(self, runs: Mapping[str, Path]) -> dict[str, DiskCounts]:
        return {}

    def set_links(self, run: Path, up: bool) -> None:
        self._life(run)

    def set_link(self, run: Path, slot: int, up: bool) -> None:
        raise AssertionError("nobody has a network card here")

    def plug(self, run: Path, nic: NicPlan, *, offloads: bool) -> None:
        raise AssertionError("nobody gets a network card here")

    def cards(self, run: Path) -> set[int]:
        return set()

    def pull(self, run: Path, slot: int) -> None:
        raise AssertionError("nobody has a network card here")

    def hardware(self, run: Path) -> Hardware:
        self._life(run)
        return Hardware((0,))

    def can_pull_cpus(self, board: BoardRecord) -> bool:
        return board.accelerator != "tcg"

    def plug_cpu(self, run: Path, board: BoardRecord, cpus: int, number: int) -> None:
        raise AssertionError("nobody is resized here")

    def pull_cpu(self, run: Path, number: int) -> None:
        raise AssertionError("nobody is resized here")

    def plug_memory(self, run: Path, dimm: Dimm) -> None:
        raise AssertionError("nobody is resized here")

    def pull_memory(self, run: Path, dimm: Dimm) -> None:
        raise AssertionError("nobody is resized here")

    def guest_memory(self, run: Path) -> GuestMemory | None:
        return None

    def balloon(self, run: Path, size: int, *, wait: bool = True) -> int:
        raise AssertionError("nobody is resized here")

    def close(self) -> None:
        for life in self._machines.values():
            life.end("host-signal")

    def _life(self, run: Path) -> Life:
        life = self._machines.get(_key(run)) if run.exists() else None
        if life is None or life.ended:
            raise MachineEnded("the machine is not running", code="machine_ended")
        return life


def _key(run: Path) -> tuple[int, int]:
    """A machine may be renamed while it runs."""
    seen = run.stat()
    return seen.st_dev, seen.st_ino


class Life:
    """A machine from its launch to its end."""

    def __init__(self, engine: WriterEngine, plan: LaunchPlan) -> None:
        self._engine, self._uuid = engine, plan.uuid
        self._run = os.open(plan.run_folder, os.O_PATH | os.O_DIRECTORY)
        self.number = next(engine.lives)
        self.ended = False
        self._stands = True
        self._told = False  # whether its first instruction was marked
        self._lock = threading.RLock()  # held by whoever touches the disk: while it is, the guest stands
        self._go = threading.Event()
        self._storage = _Storage(plan, engine.sockets / f"{self.number}")
        self._disk = Disk(engine.sockets / f"{self.number}.nbd", "disk0")
        load = plan.load
        self.map: Map = remembered(load.memory) if load is not None and load.memory is not None else self._read()
        self._tell()
        self._keeper = Keeper(plan.run_folder / names.KEEPER_SOCKET, self._state, self.end, self.resume)
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()
        if load is None:
            self.resume()

    def _read(self) -> Map:
        found = {block: number_of(block, self._disk.read(block)) for block in range(COUNT)}
        return {str(block): number for block, number in found.items() if number}

    # -- the guest ---------------------------------------------------------------------------------------------------------
    def _write(self) -> None:
        chance = random.Random(self._engine.chance.random())
        with contextlib.suppress(OSError):
            while True:
                self._go.wait()
                if self.ended:
                    return
                with self._standing() as stood:
                    if not stood:
                        for block in chance.sample(range(COUNT), chance.randint(1, 3)):
                            self._put(block)
                with self._standing() as stood:
                    if not stood:
                        self._flush()
                time.sleep(_PACE)

    @contextlib.contextmanager
    def _standing(self) -> Iterator[bool]:
        with self._lock:
            yield self._stands or self.ended

    def _put(self, block: int) -> None:
        number = next(self._engine.numbers)
        self._disk.write(block, content(self._uuid, block, number))
        self.map[str(block)] = number

    def _flush(self) -> None:
        if not self._engine.lying:
            self._disk.flush()
        self._engine.maps[self._uuid] = dict(self.map)
        self._engine.marker.mark("written", uuid=self._uuid, map=self.map)

    # -- what is done to it ------------------------------------------------------------------------------------------------
    def _state(self) -> str:
        return "ended" if self.ended else "paused" if self._stands else "running"

    def pause(self) -> None:
        with self._lock:
            self._stands = True
            self._go.clear()
            self._tell()

    def resume(self) -> None:
        with self._lock:
            if self.ended:
                return
            if not self._told:
                # Before its first instruction: from now on this is what the machine's disk holds.
                self._engine.maps[self._uuid] = dict(self.map)
                self._engine.marker.mark("lives", uuid=self._uuid, map=self.map)
                self._told = True
            self._stands = False
            self._tell()
            self._go.set()

    def save(self, order: SaveOrder) -> Saved:
        with self._lock:
            memory = json.dumps(self.map).encode().ljust(4096) + random.randbytes(_MEMORY - 4096)
            order.memory.write_bytes(memory)
            order.at_instant()
            self._storage.switch(order.heads)
            order.switched()
            order.state.write_bytes(random.randbytes(4096))
            if not order.go_on:
                self.pause()
        return Saved("mapped-ram", 0, 0.0)

    def end(self, reason: str) -> None:
        """Whatever the reason, its disks are closed as a QEMU that is asked to end closes them."""
        with self._lock:
            if self.ended:
                return
            if reason == "guest-shutdown" and not self._stands:
                self._flush()
            self.ended = True
            self._go.set()
        self._disk.close()
        self._storage.end()
        self._engine.maps[self._uuid] = dict(self.map)  # closing a disk flushes it
        with contextlib.suppress(OSError):
            self._leave(names.EXIT, {"version": 1, "time": time.time_ns(), "reason": reason, "guest": True, "last_words": ""})
        self._keeper.close()
        os.close(self._run)

    def _tell(self) -> None:
        self._leave(names.STATUS, {"state": self._state(), "agent": True, "since": time.time_ns()})

    def _leave(self, name: str, record: dict[str, object]) -> None:
        path = Path(f"/proc/self/fd/{self._run}/{name}")
        path.write_text(json.dumps(record))


def remembered(memory: Path) -> Map:
    """What is in a memory file."""
    found: Map = json.loads(memory.read_bytes()[:4096])
    return found


class _Storage:
    """QEMU's block layer on a machine's disks, in a process of its own."""

    def __init__(self, plan: LaunchPlan, path: Path) -> None:
        self._held: list[int] = []
        ours, theirs = socket.socketpair()
        words = ["qemu-storage-daemon", "--chardev", f"socket,id=monitor,fd={theirs.fileno()}", "--monitor", "chardev=monitor"]
        self._heads: dict[str, Path] = {}
        for disk in plan.disks:
            for depth, layer in enumerate((*disk.layers, disk.head)):
                self._heads[disk.name] = self._hold(layer.path)
                for node in _nodes(disk.name, depth, self._heads[disk.name], frozen=depth < len(disk.layers)):
                    words += ["--blockdev", json.dumps(node)]
        top = f"disk0-{len(plan.disks[0].layers)}"
        words += ["--nbd-server", f"addr.type=unix,addr.path={path}.nbd"]
        words += ["--export", f"type=nbd,id=export,node-name={top},name=disk0,writable=on"]
        self._process = subprocess.Popen(words, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self._monitor = ours.makefile("rwb")
        ours.settimeout(_PATIENCE)
        ours.close()
        self._monitor.readline()
        self._do("qmp_capabilities")

    def switch(self, heads: tuple[NewHead, ...]) -> None:
        """All disks at once go on in their new heads; the former ones are opened anew, read-only."""
        next_heads = {head.disk: self._hold(head.path) for head in heads}
        for head in heads:
            for node in _nodes(head.disk, head.depth, next_heads[head.disk], alone=True):
                self._do("blockdev-add", **node)
        actions = [
            {
                "type": "blockdev-snapshot",
                "data": {"node": f"{head.disk}-{head.depth - 1}", "overlay": f"{head.disk}-{head.depth}"},
            }
            for head in heads
        ]
        self._do("transaction", actions=actions)
        for head in heads:
            self._do("blockdev-reopen", options=_nodes(head.disk, head.depth - 1, self._heads[head.disk], frozen=True))
            self._heads[head.disk] = next_heads[head.disk]

    def end(self) -> None:
        with contextlib.suppress(OSError, InsulaError):
            self._do("quit")
        self._monitor.close()
        self._process.wait(_PATIENCE)
        for descriptor in self._held:
            os.close(descriptor)

    def _hold(self, path: Path) -> Path:
        """A name of the file that stays when its machine is renamed, and when it is given another name."""
        self._held.append(os.open(path, os.O_PATH))
        return Path(f"/proc/{os.getpid()}/fd/{self._held[-1]}")

    def _do(self, command: str, **arguments: Any) -> None:
        self._monitor.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        self._monitor.flush()
        while line := self._monitor.readline():
            said = json.loads(line)
            if "error" in said:
                raise InsulaError(f"{command}: {said['error']['desc']}")
            if "return" in said:
                return
        raise MachineEnded("its disks are gone", code="machine_ended")


def _nodes(disk: str, depth: int, path: Path, *, frozen: bool = False, alone: bool = False) -> list[dict[str, Any]]:
    """The words of the board for a layer or a head: its file, and what makes a disk of it (see engines/qemu/heads.py)."""
    name, common = f"{disk}-{depth}", {"read-only": frozen, "auto-read-only": False, "discard": "unmap"}
    file = {"driver": "file", "node-name": f"{name}-file", "filename": os.fspath(path), **common}
    below = f"{disk}-{depth - 1}" if depth and not alone else None
    return [file, {"driver": "qcow2", "node-name": name, "file": f"{name}-file", "backing": below, **common}]
