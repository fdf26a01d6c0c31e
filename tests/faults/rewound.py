"""What must hold in a home after whatever happened: nothing half made, nothing that nobody names, no guest on other disks."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import insula
from insula.errors import NotFound
from insula.host import cgroup_trees, cgroups
from insula.host.files import is_temporary
from insula.host.watch import Watch
from insula.operations.observe import is_alive
from insula.store import names
from insula.store.locks import is_still_there, machine_lock
from insula.store.machines import MachineRecord, read_machine
from insula.store.names import Home
from insula.store.snapshots import SnapshotRecord, needed_layers, read_snapshot, snapshot_layers, snapshot_names
from tests.framework.doors import cli_environment, run_cli
from tests.framework.processes import written_files
from tests.framework.project import ROOT

_PATIENCE = 20.0  # seconds for what ends or goes on by itself
# What a verb may say when QEMU or a keeper dies under it.
SAID = frozenset(
    "machine_ended load_failed failed_to_start keeper_failed keeper_gone not_running wrong_state agent_absent".split()
)
_KNOWN = {
    names.RECORD,
    names.LOCK,
    names.EVENTS,
    names.EVENTS_OLD,
    names.CONSOLE,
    names.CONSOLE_OLD,
    names.QEMU_LOG,
    names.LAST_END,
    names.VERIFIED_LAYERS,
    names.DISKS,
    names.LAYERS,
    names.FIRMWARE,
    names.TPM,
    names.RUN,
    names.SNAPSHOTS,
    names.SUSPENDED,
}
_IN_SNAPSHOT = {names.SNAPSHOT_RECORD, names.MEMORY, names.STATE, names.VARIABLES, names.TPM, names.VERIFIED_LAYERS}


def empty_groups(home: Path) -> list[str]:
    """Control groups of the home in which nobody is, or not in all of its trees; a machine that is just ending is waited for."""
    deadline = time.monotonic() + _PATIENCE
    while (found := _empty_groups(home)) and time.monotonic() < deadline:
        run_next(home)
    return found


def _empty_groups(home: Path) -> list[str]:
    trees, parent = cgroup_trees.usable_trees(), names.home_key(home)
    found = {leaf: cgroups.find(parent, leaf, trees) for leaf in cgroups.leaves(parent, trees)}
    return [leaf for leaf, group in found.items() if group is None or not all(group.members().values())]


def victim(home: Path, step: int | str, verb: str, name: str, **told: str) -> tuple[int, list[str], str]:
    """Run tests.faults.victim, ``told`` being what it finds in its environment; its status, the steps it told of until the fatal
    one, and the error's code."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.victim", str(home), str(step), verb, name],
        env=cli_environment(home) | told, cwd=ROOT, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done.returncode, done.stdout.decode().splitlines(), done.stderr.decode().strip()


def strike(home: Path, step: str, verb: str, name: str, check: Callable[[int], None], *said: str, **told: str) -> int:
    """One round: kill the command, or whomever ``step`` names, and ``check`` what is left, given the command's status. ``said``:
    errors it may end with beside `SAID`. How many steps there were until then."""
    status, steps, code = victim(home, step, verb, name, **told)
    try:
        if step[0] in "qQkK":
            assert status in (0, 3)
            assert code in SAID.union(said) or status == 0
        else:
            assert (status, code) in ((0, ""), (130 if step[0] == "i" else -signal.SIGKILL, ""))
        check(status)
    except BaseException as failure:
        failure.add_note(f"{verb}, killed at {step} ({steps[-3:]}), ended with {status} {code}".rstrip())
        raise
    return len(steps)


def run_next(home: Path) -> None:
    """Any verb sweeps the home first, even one that then has nothing to do."""
    done = run_cli(home, "delete", "--json", "nobody-here")
    assert json.loads(done.stderr)["code"] == "machine_not_found"


def settled(home: Path, name: str) -> str | None:
    """The machine's state once its keeper has done what it was told for the case of a death, None when it is gone then; a guest
    never stays paused."""
    folder = home / "machines" / name
    try:
        with Watch() as watch:
            watch.add(folder)
            with contextlib.suppress(FileNotFoundError):
                watch.add(folder / names.RUN)
            machine = insula.connect(home).get(name)
            while (state := machine.state) in ("paused", "starting") or (state == "stopped" and is_alive(folder)):
                assert watch.wait_change(timeout=_PATIENCE), f"{name} stays {state}"
        with machine_lock(folder / names.LOCK, name, "look", patience=_PATIENCE):  # its keeper's call may be at work
            return insula.connect(home).get(name).state
    except (NotFound, FileNotFoundError):
        return None


def chain_of(folder: Path) -> str:
    """qemu-img's name for a machine's first disk as its record has it."""
    disk: dict[str, object] | None = None
    record = read_machine(folder).disks[0]
    for path in (*record.layers, record.head):
        disk = {"driver": "qcow2", "file": {"driver": "file", "filename": str(folder / path)}, "backing": disk}
    return f"json:{json.dumps(disk)}"


def left_over(home: Path) -> list[str]:
    """A line for each thing in the home that has no business there while no command is at work."""
    return sorted(_left_over(Home(home)))


def _left_over(home: Home) -> Iterator[str]:
    # First those who work behind are waited for: what they are at is no left-over.
    yield from (str(path.relative_to(home.root)) for path in _entries(home.host) if path.suffix == ".lock" and _is_stale(path))
    yield from (f"control group {leaf}" for leaf in empty_groups(home.root))
    for folder in (home.machines, home.warm, home.spares):
        yield from (str(path.relative_to(home.root)) for path in _entries(folder) if path.name.startswith("."))
    for folder in (*_entries(home.machines), *_entries(home.warm)):
        if not folder.name.startswith("."):
            yield from (f"{folder.name}/{line}" for line in _of_machine(folder))


def _is_stale(lock: Path) -> bool:
    """Whether the file of `only_one` is still there once nobody works under it; who does, behind some command, is waited for."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return is_still_there(descriptor, lock)
    finally:
        os.close(descriptor)


def _of_machine(folder: Path) -> Iterator[str]:
    yield from (path.name for path in _entries(folder) if path.name not in _KNOWN)
    yield from (f"{part.parent.name}/{part.name}" for part in folder.rglob(".*") if is_temporary(part.name))
    record = read_machine(folder)
    places = [folder / names.SNAPSHOTS / name for name in snapshot_names(folder)]
    places += [folder / names.SUSPENDED] if (folder / names.SUSPENDED).exists() else []
    states = [read_snapshot(place) for place in places]
    for place in places:
        yield from (f"{place.name}/{path.name}" for path in _entries(place) if path.name not in _IN_SNAPSHOT)
    yield from (f"snapshots/{path.name}" for path in _entries(folder / names.SNAPSHOTS) if path.name.startswith("."))
    yield from _unnamed(folder, record, states)
    yield from _written(folder, record)


def _unnamed(folder: Path, record: MachineRecord, states: list[SnapshotRecord]) -> Iterator[str]:
    layers = needed_layers(record).union(*(snapshot_layers(state) for state in states))
    named = {disk.head for disk in record.disks} | layers | {record.variables, record.tpm}
    for part in (names.DISKS, names.LAYERS, names.FIRMWARE, names.TPM):
        for path in _entries(folder / part):
            relative = f"{part}/{path.name}"
            if relative not in named:
                yield f"{relative} is named by nobody"
            elif part == names.LAYERS and stat.S_IMODE(path.lstat().st_mode) != names.LAYER_MODE:
                yield f"{relative} is no layer for good"
    yield from (f"{path} is missing" for path in layers if not (folder / path).exists())


def _written(folder: Path, record: MachineRecord) -> Iterator[str]:
    """Of all disks, layers and snapshots the guest's process can write the heads, and nothing else."""
    heads = {str(folder / disk.head) for disk in record.disks}
    places = tuple(f"{folder}/{part}/" for part in (names.DISKS, names.LAYERS, names.SNAPSHOTS))
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and "qemu" in (entry / "comm").read_text():
                written = {path for path in written_files(int(entry.name)).values() if path.startswith(places)}
                if written and heads != written:
                    yield f"QEMU writes to {sorted(path.removeprefix(str(folder)) for path in written)}"
        except OSError:
            continue


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
