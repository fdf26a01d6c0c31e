"""Snapshots that are missing, damaged, from elsewhere or from a newer Insula: refused before the guest that runs is touched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import insula
from insula.errors import HostLacks, InsulaError, NotFound
from insula.store import names
from tests.faults.rewound import left_over
from tests.framework.doors import run_cli

pytestmark = [pytest.mark.guest, pytest.mark.limit(120)]

_MEMO = "in memory\n"


@pytest.fixture(scope="module")
def machine(home: Path, tiny: str) -> Iterator[insula.Machine]:
    """A running machine whose disk has changed since its snapshot `base`, so that this has a layer of its own."""
    name = "damaged"
    machine = insula.connect(home).run(tiny, name=name, memory="128M", network="none")
    machine.exec("sh", "-c", "echo old > /root/note; sync", check=True)
    machine.snapshot("base")
    machine.exec("sh", "-c", f"echo new > /root/note; sync; printf '{_MEMO[:-1]}\\n' > /run/memo", check=True)
    yield machine
    machine.delete(force=True)


@pytest.fixture
def place(home: Path, machine: insula.Machine) -> Iterator[Path]:
    """The snapshot's folder; whatever a test does to its files and to the machine's layers is undone."""
    folder = home / "machines" / machine.name
    place = folder / names.SNAPSHOTS / "base"
    files = [*place.iterdir(), *(folder / names.LAYERS).iterdir()]
    before = {path: (path.read_bytes(), path.stat()) for path in files}
    yield place
    for path, (content, status) in before.items():
        if not path.exists() or path.stat().st_mtime_ns != status.st_mtime_ns or path.stat().st_size != status.st_size:
            path.unlink(missing_ok=True)
            path.write_bytes(content)
            os.chown(path, status.st_uid, status.st_gid)
            path.chmod(status.st_mode & 0o777)


def _flip(path: Path) -> None:
    """Change one byte that is not zero, in the middle of what there is."""
    path.chmod(0o600)
    content = path.read_bytes()
    at = next(at for at in range(len(content) // 2, len(content)) if content[at])
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(bytes([content[at] ^ 0xFF]))


def _edit(place: Path, change: Callable[[dict[str, Any]], None]) -> None:
    record = json.loads((place / names.SNAPSHOT_RECORD).read_bytes())
    change(record)
    (place / names.SNAPSHOT_RECORD).write_text(json.dumps(record))


def _own_layer(place: Path) -> Path:
    record = json.loads((place / names.SNAPSHOT_RECORD).read_bytes())
    path: Path = place.parents[1] / record["disks"][0]["layers"][-1]
    return path


def _truncate(path: Path) -> None:
    path.chmod(0o600)
    os.truncate(path, path.stat().st_size // 2)


# What is done to the snapshot, the error's code, and words its message or hint must hold.
DAMAGES: dict[str, tuple[Callable[[Path], None], str, tuple[str, ...]]] = {
    "memory flipped": (lambda place: _flip(place / names.MEMORY), "layer_tampered", ("memory",)),
    "memory missing": (lambda place: (place / names.MEMORY).unlink(), "layer_missing", ("memory",)),
    "devices truncated": (lambda place: _truncate(place / names.STATE), "layer_tampered", ("state",)),
    "layer flipped": (lambda place: _flip(_own_layer(place)), "layer_tampered", (".qcow2",)),
    "layer missing": (lambda place: _own_layer(place).unlink(), "layer_missing", (".qcow2",)),
    "no record": (lambda place: (place / names.SNAPSHOT_RECORD).unlink(), "snapshot_damaged", ("delete",)),
    "record garbage": (lambda place: _write(place, b"\x00{garbage"), "damaged_record", ("snapshot.json",)),
    "record a list": (lambda place: _write(place, b"[]"), "damaged_record", ("snapshot.json",)),
    "newer": (lambda place: _edit(place, lambda record: record.update(version=99, fresh=1)), "snapshot_too_new", ("99", "newer")),
    "another CPU": (
        lambda place: _edit(place, lambda record: record["board"].update(cpu="Skylake-Server")),
        "snapshot_not_loadable",
        ("Skylake-Server", "this host's is"),
    ),
    "another board": (
        lambda place: _edit(place, lambda record: record["board"].update(machine="pc-q35-99.7")),
        "snapshot_not_loadable",
        ("pc-q35-99.7", "this host's is"),
    ),
    "another accelerator": (
        lambda place: _edit(place, lambda record: record["board"].update(accelerator="hvf")),
        "snapshot_not_loadable",
        ("hvf", "this host's is"),
    ),
}


def _write(place: Path, content: bytes) -> None:
    (place / names.SNAPSHOT_RECORD).write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_trusted_or_loaded_is_refused_before_anything_is_touched(
    home: Path, machine: insula.Machine, place: Path, damage: str
) -> None:
    spoil, code, words = DAMAGES[damage]
    spoil(place)
    status = machine.show()
    for command in (("snapshot", "restore"), ("snapshot", "restore", "--discard"), ("fork",)):
        done = run_cli(home, *command, "--json", f"{machine.name}@base")
        error = json.loads(done.stderr.splitlines()[-1])
        assert (done.returncode != 0, error["code"]) == (True, code), error
        assert all(word in f"{error['message']} {error['hint']}" for word in words), error
        assert error["hint"]
        if code.startswith("layer_"):
            assert error["hint"].endswith(f"insula snapshot delete {machine.name}@base")
    assert machine.exec("cat", "/run/memo", check=True).stdout == _MEMO
    assert [(one.name, one.state) for one in insula.connect(home).list() if one.name.startswith(machine.name)] == [
        (machine.name, "running")
    ]
    assert machine.show().created == status.created
    listed = {one["name"]: one for one in json.loads(run_cli(home, "snapshot", "list", "--json", machine.name).stdout)}
    assert set(listed) == {"base"}  # broken or not, it is shown


def test_the_snapshot_that_was_spoilt_and_mended_works(machine: insula.Machine, place: Path, home: Path) -> None:
    with pytest.raises(NotFound, match="no snapshot 'gone'") as error:
        insula.Snapshot(machine, "gone").restore()
    assert error.value.hint == "there are: base"
    with pytest.raises(NotFound) as error:
        insula.Snapshot(machine, "bse").restore()
    assert error.value.hint == "did you mean base?"
    child = insula.Snapshot(machine, "base").fork()[0]
    with child:
        assert child.exec("cat", "/root/note", check=True).stdout == "old\n"
    assert machine.exec("cat", "/run/memo", check=True).stdout == _MEMO
    assert left_over(home) == []


@pytest.mark.full
def test_the_disks_alone_come_back_where_the_memory_cannot(home: Path, tiny: str, name: str) -> None:
    """Off, it needs neither the CPU nor the file; what was on the disk at that instant boots. What it was can be had again."""
    machine = insula.connect(home).run(tiny, name=name, memory="128M", network="none")
    machine.exec("sh", "-c", "echo old > /root/note; sync", check=True)
    base = machine.snapshot("base")
    machine.exec("sh", "-c", "echo new > /root/note; echo here > /run/memo", check=True)
    place = home / "machines" / name / names.SNAPSHOTS / "base"
    _edit(place, lambda record: record["board"].update(cpu="Skylake-Server"))
    (place / names.MEMORY).unlink()
    with pytest.raises(HostLacks, match="Skylake-Server") as refused:
        base.restore()
    assert refused.value.hint == f"to have its disks alone: insula snapshot restore --disks {name}@base"
    base.restore(disks=True)
    assert machine.state == "stopped"
    assert machine.start().exec("cat", "/root/note", check=True).stdout == "old\n"
    insula.Snapshot(machine, "before-restore").restore(keep=False)
    assert machine.exec("cat", "/root/note", "/run/memo", check=True).stdout == "new\nhere\n"
    machine.delete(force=True)


@pytest.mark.parametrize("name", ["../x", "..", ".", ".new-x", "-x", "a/b", "a\n", "\u202e", "a" * 64, "@", "a@b", "\x1b[2J"])
@pytest.mark.parametrize("verb", ["create", "restore", "delete", "show"])
def test_hostile_names_of_snapshots_touch_nothing(home: Path, machine: insula.Machine, verb: str, name: str) -> None:
    before = sorted((home / "machines" / machine.name).rglob("*"))
    done = run_cli(home, "snapshot", verb, "--json", "--", f"{machine.name}@{name}")
    assert done.returncode in (1, 2)
    assert b"Traceback" not in done.stderr
    assert b"\x1b" not in done.stderr
    assert sorted((home / "machines" / machine.name).rglob("*")) == before


@pytest.mark.parametrize(
    "words", [("snapshot", "restore", "damaged@"), ("snapshot", "restore", "@base"), ("fork", "damaged@"), ("fork", "@x")]
)
def test_half_a_name_is_told(home: Path, machine: insula.Machine, words: tuple[str, ...]) -> None:
    done = run_cli(home, words[0], *words[1:-1], "--json", words[-1])
    assert done.returncode in (1, 2, 125)
    assert json.loads(done.stderr.splitlines()[-1])["code"] == "bad_name"
    assert [one.name for one in insula.connect(home).list() if one.name.startswith("damaged-")] == []


@pytest.mark.full
def test_a_warm_state_that_was_damaged_is_made_anew(home: Path, tiny: str) -> None:
    connection = insula.connect(home)
    memory = 132 << 20  # nobody else's in this home
    connection.run(tiny, memory=memory, network="none").delete(force=True)
    key = next(state.key for state in connection.warm_states() if state.memory == memory)
    booted = home / "warm" / key / names.SNAPSHOTS / "booted"
    for spoil in (
        lambda: _flip(booted / names.MEMORY),
        lambda: _truncate(booted / names.STATE),
        lambda: _write(booted, b"garbage"),
        lambda: _edit(booted, lambda record: record.update(created=1.0)),
    ):
        before = (booted / names.MEMORY).stat().st_ino
        spoil()
        with connection.run(tiny, memory=memory, network="none") as fresh:
            assert fresh.exec("true").code == 0
        assert (booted / names.MEMORY).stat().st_ino != before
        assert len([state for state in connection.warm_states() if state.memory == memory and not state.stale]) == 1
    assert left_over(home) == []


def test_a_stopped_machines_snapshot_is_restored_but_not_forked(home: Path, tiny: str, name: str) -> None:
    stopped = insula.connect(home).create(tiny, name=name, memory="128M", network="none")
    snapshot = stopped.snapshot("off")
    with pytest.raises(InsulaError) as error:
        snapshot.fork()
    assert error.value.code == "no_memory_in_snapshot"
    snapshot.restore()
    assert stopped.state == "stopped"
    assert {one.name for one in stopped.snapshots()} == {"off", "before-restore"}
    assert left_over(home) == []
