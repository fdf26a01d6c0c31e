"""What is left of a host after a power cut, and what must be: the oracle of test_power_cut.py.

The disk is rebuilt as it may be after a cut at some instant, its file system brought in order (e2fsck replays the journal as the
kernel would at the next mount), the state folder taken out of it, and Insula let at it.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import insula
from insula.client.local import LocalClient
from insula.disks.verify import ensure_layers, ensure_sums
from insula.errors import InsulaError, NotFound, WrongState
from insula.host.files import is_temporary
from insula.model.requests import DeleteMachine
from insula.store import names
from insula.store.machines import MachineRecord, machine_names, read_machine
from insula.store.names import Home
from insula.store.snapshots import needed_layers, read_snapshot, snapshot_layers, snapshot_names
from tests.faults.power.blocks import Map, read_map
from tests.faults.power.engine import remembered
from tests.faults.power.marks import FILE_SYSTEM, read_marks
from tests.framework.write_log import Disk, WriteLog


@dataclass(frozen=True)
class Instant:
    """Power goes before the request ``position``; of what no flush made sure a ``share`` is on the disk; ``seed`` tells which."""

    position: int
    share: float
    seed: int

    def __str__(self) -> str:
        return f"before request {self.position}, {self.share:g} of the unsure (seed {self.seed})"


@dataclass
class World:
    """What was promised until an instant. ``maps``: what each machine's disk held at its guest's last answered flush, by UUID;
    ``machines``: what each verb that ended made of those it touched; ``after``: what the one under way may have made."""

    machines: dict[str, dict[str, Any]] = field(default_factory=dict)
    maps: dict[str, Map] = field(default_factory=dict)
    alive: set[str] = field(default_factory=set)  # machines whose guest may have written after its last answered flush
    verb: str = ""
    after: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    base: Map | None = None  # what the disk of the machine it makes, or restores, begins with


def worlds(log: WriteLog, positions: set[int]) -> Iterator[tuple[int, World]]:
    """What was promised just before each of ``positions``, in their order."""
    marks = list(read_marks(log))
    ends = {mark["number"]: mark["world"] for _, mark in marks if mark["kind"] == "done"}
    world, left = World(), sorted(positions)
    for number, mark in [*marks, (len(log.requests), {"kind": "end"})]:
        while left and left[0] <= number:
            yield left.pop(0), world
        _hear(world, mark, ends)


def _hear(world: World, mark: dict[str, Any], ends: dict[int, dict[str, Any]]) -> None:
    if mark["kind"] in ("written", "lives"):
        world.maps[mark["uuid"]] = mark["map"]
        world.alive.add(mark["uuid"])
    elif mark["kind"] == "begin":
        world.verb, world.base = mark["verb"], mark["base"]
        world.after = ends[mark["number"]]
    elif mark["kind"] == "done":
        for name, told in mark["world"].items():
            world.machines.pop(name, None)
            if told is not None:
                world.machines[name] = told
                if not told["writes"]:
                    world.maps[told["uuid"]] = told["map"]
                    world.alive.discard(told["uuid"])
        world.verb, world.after, world.base = "", {}, None


class Rebuilt:
    """The state folder as it is found at the next boot."""

    def __init__(self, disk: Disk, instant: Instant, folder: Path, host: Path) -> None:
        """``host``: what an Insula found out about this computer; it need not be found out again for each instant."""
        self.home = folder / "insula"
        image = folder / "cut.raw"
        disk.cut(image, disk.advance(instant.position), random.Random(instant.seed), instant.share)
        os.truncate(image, FILE_SYSTEM)
        replayed = subprocess.run(["e2fsck", "-y", image], capture_output=True, text=True)
        assert replayed.returncode in (0, 1), f"no disk loses so much: {replayed.stdout}"
        whole = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True)
        assert whole.returncode == 0, f"the log was not replayed rightly: {whole.stdout}"
        shutil.rmtree(self.home, ignore_errors=True)
        done = subprocess.run(["debugfs", "-R", f"rdump /insula {folder}", image], capture_output=True, text=True)
        assert self.home.is_dir(), done.stderr
        shutil.rmtree(self.home / "host", ignore_errors=True)
        (self.home / "host").symlink_to(host)


def check(home: Path, world: World) -> list[str]:
    """What is wrong with what was left; nothing, when Insula keeps its promises. Changes ``home``: Insula recovers."""
    faults: list[str] = []
    connection = insula.connect(home)
    faults += [f"{status.name}: {status.problem}" for status in connection.list() if status.problem]
    with contextlib.suppress(NotFound):
        LocalClient(home).do(DeleteMachine(name="nobody"))  # every changing verb sweeps first, even one that has nothing to do
    for name in machine_names(Home(home)):
        try:
            connection.get(name).stop()  # changes nothing, but recovers first
        except WrongState:
            pass  # it is suspended
        except InsulaError as refusal:
            faults.append(f"{name}: recovery says: {refusal}")
    faults += _leftovers(home)
    present = {}
    for name in machine_names(Home(home)):
        try:
            present[name] = _look(home / "machines" / name)
        except (InsulaError, OSError, AssertionError) as cause:
            faults.append(f"{name}: {type(cause).__name__}: {cause}")
    return faults or [*_compare(present, world)]


def start_all(home: Path) -> Iterator[str]:
    """Start each machine, and end it again. A suspended one boots: no real QEMU made its memory."""
    connection = insula.connect(home)
    for name in machine_names(Home(home)):
        machine = connection.get(name)
        try:
            machine.start(timeout=0, cold=machine.state == "suspended")
            if machine.state not in ("starting", "running"):
                yield f"{name}: it does not start, it is {machine.state}"
            machine.stop(force=True)
        except InsulaError as refusal:
            yield f"{name}: it does not start: {refusal}"


def _leftovers(home: Path) -> Iterator[str]:
    """Files that nobody needs, once every machine was recovered."""
    for path in (home / "machines").rglob("*"):
        if path.name.startswith((names.NEW_PREFIX, names.GONE_PREFIX)) or is_temporary(path.name) or path.name == names.JOURNAL:
            yield f"left behind: {path.relative_to(home)}"
    for name in machine_names(Home(home)):
        folder = home / "machines" / name
        try:
            record = read_machine(folder)
            needed = needed_layers(record) | {disk.head for disk in record.disks}
            for place in (*snapshot_names(folder),):
                needed |= snapshot_layers(read_snapshot(folder / names.SNAPSHOTS / place))
            if (folder / names.SUSPENDED).exists():
                needed |= snapshot_layers(read_snapshot(folder / names.SUSPENDED))
        except InsulaError:
            continue  # told elsewhere
        for place in (names.DISKS, names.LAYERS):
            for path in (folder / place).iterdir():
                if f"{place}/{path.name}" not in needed:
                    yield f"nobody needs {path.relative_to(home)}"


def _look(folder: Path) -> dict[str, Any]:
    """What a machine is. Raises when a file of it is missing, or not what it should be."""
    record = read_machine(folder)
    ensure_layers(folder, record.sums, folder / "no stamps")
    for disk in record.disks:
        for path in (*disk.layers, disk.head):
            _check_image(folder / path)
    snapshots = {}
    for name in snapshot_names(folder):
        snapshots[name] = _look_at_snapshot(folder, folder / names.SNAPSHOTS / name)
    suspended = (folder / names.SUSPENDED).exists()
    if suspended:
        kept = _look_at_snapshot(folder, folder / names.SUSPENDED)
        here = read_map(_chain(folder, record))
        assert kept == here, f"its memory knows of {kept}, its disk holds {here}"
        heads = [disk.head for disk in read_snapshot(folder / names.SUSPENDED).disks]
        assert heads == [disk.head for disk in record.disks], "its memory is of other heads"
    return {
        "uuid": record.identity.uuid,
        "map": read_map(_chain(folder, record)),
        "snapshots": snapshots,
        "suspended": suspended,
    }


def _chain(folder: Path, record: MachineRecord) -> list[Path]:
    return [folder / path for path in (*record.disks[0].layers, record.disks[0].head)]


def _look_at_snapshot(machine: Path, folder: Path) -> Map:
    state = read_snapshot(folder)
    ensure_sums(machine, folder, state.sums)
    found = read_map([machine / path for path in state.disks[0].layers])
    if state.memory is not None:
        knows = remembered(folder / names.MEMORY)
        assert knows == found, f"{folder.name}: its memory knows of {knows}, its disk holds {found}"
    return found


def _check_image(path: Path) -> None:
    done = subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", path], capture_output=True, text=True)
    # 3: clusters that nobody uses, as a QEMU leaves them that did not come to its end.
    assert done.returncode in (0, 3), f"{path.name} is damaged: {done.stdout}{done.stderr}"


# -- what was promised -----------------------------------------------------------------------------------------------------
def _compare(present: dict[str, dict[str, Any]], world: World) -> Iterator[str]:
    uuids = [machine["uuid"] for machine in present.values()]
    if len(set(uuids)) != len(uuids):
        yield f"two machines are one and the same: {sorted(present)}"
    for name, told in world.machines.items():
        if told["uuid"] not in uuids and not (world.verb == "DeleteMachine" and name in world.after):
            yield f"{name} is under no name any more"
    for name in sorted({*world.machines, *world.after, *present}):
        allowed = [world.machines.get(name)] + ([world.after[name]] if name in world.after else [])
        found = present.get(name)
        if found is None:
            if None not in allowed:
                yield f"{name} is lost"
        else:
            known = [each for each in allowed if each is not None and each["uuid"] == found["uuid"]]
            if not known:
                yield f"{name} should not be there, or is another"
                continue
            yield from (f"{name}: {fault}" for fault in _compare_machine(found, known, world))


def _compare_machine(found: dict[str, Any], known: list[dict[str, Any]], world: World) -> Iterator[str]:
    if found["suspended"] not in [each["suspended"] for each in known]:
        yield f"it is {'' if found['suspended'] else 'not '}suspended"
    now = world.maps.get(found["uuid"], known[0]["map"])
    # What no answered flush covers may be there, if its guest was alive: a later number in any block.
    may_be_newer = found["uuid"] in world.alive or bool(world.after)
    maps = [now, *(each["map"] for each in world.after.values() if each is not None and each["uuid"] == found["uuid"])]
    maps += [world.base] if world.after and world.base is not None else []
    if not any(_holds(found["map"], each, may_be_newer) for each in maps):
        yield f"its disk holds {found['map']}, and should hold {' or '.join(map(str, maps))}"
    for name in sorted({*found["snapshots"], *(name for each in known for name in each["snapshots"])}):
        here = found["snapshots"].get(name)
        if not any(here == each["snapshots"].get(name) for each in known):
            yield f"its snapshot {name} holds {here}, should be {[each['snapshots'].get(name) for each in known]}"


def _holds(found: Map, promised: Map, may_be_newer: bool) -> bool:
    if found == promised or not may_be_newer:
        return found == promised
    last = max(promised.values(), default=0)
    return set(promised) <= set(found) and all(found[block] == promised.get(block) or found[block] > last for block in found)
