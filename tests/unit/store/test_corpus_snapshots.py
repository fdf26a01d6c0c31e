"""What every version of the snapshot's record came with: recorded once, from a machine that ran, and never changed. All of it is
still understood."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from insula.model.spec import MachineSpec
from insula.operations import journal
from insula.store import names
from insula.store.due import Due, read_due
from insula.store.machines import read_machine
from insula.store.manifest import decode_manifest
from insula.store.names import Home
from insula.store.snapshots import SNAPSHOT_VERSION, SnapshotRecord, read_snapshot, snapshot_layers
from insula.store.spares import WANTED, Wanted, read_wanted
from insula.store.sums import read_stamps

VERSIONS = Path(__file__).parents[2] / "corpus" / "snapshots"
MACHINES = {1: 2, 2: 4, 3: 5, 4: 5}  # the version of the machine's record then
_SPEC = MachineSpec(cpus=1, memory=128 << 20, disk=10 << 30, networks=("nat",), firmware="bios")
_SUSPENDED, _STAMPS, _MANIFEST = "suspended.json", "snapshot-verified.json", "manifest.json"


@pytest.fixture(params=sorted(MACHINES))
def version(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


@pytest.fixture
def kept(version: int) -> Path:
    return VERSIONS / f"v{version}"


def _read(tmp_path: Path, record: Path) -> SnapshotRecord:
    shutil.copy(record, tmp_path / names.SNAPSHOT_RECORD)
    return read_snapshot(tmp_path)


def test_each_version_is_kept() -> None:
    assert sorted(path.name for path in VERSIONS.iterdir()) == [f"v{number}" for number in range(1, SNAPSHOT_VERSION + 1)]
    expected = {names.RECORD, names.SNAPSHOT_RECORD, names.JOURNAL, names.DUE, WANTED, _SUSPENDED, _STAMPS, _MANIFEST}
    for folder in VERSIONS.iterdir():
        assert {path.name for path in folder.iterdir()} == expected


def test_a_snapshot_says_what_it_needs(tmp_path: Path, kept: Path, version: int) -> None:
    record = _read(tmp_path, kept / names.SNAPSHOT_RECORD)
    machine = read_machine(kept)
    assert (record.version, machine.version) == (version, MACHINES[version])
    assert record.spec == machine.spec == _SPEC
    assert record.identity.uuid == machine.id
    assert (record.state, record.description, record.hardware.total) == ("running", "", 128 << 20)
    assert machine.parent == record.id != record.parent is not None
    assert record.memory is not None
    assert (record.memory.method, record.memory.offset) == ("changed-pages", 1 << 20)
    assert 0 < record.memory.pause < 1
    assert record.board is not None
    assert record.board == machine.board
    assert (record.board.machine, record.board.accelerator, record.board.qemu) == ("pc-q35-10.0", "tcg", "10.0.2")
    assert set(record.sums) == snapshot_layers(record) | {names.MEMORY, names.STATE}
    assert record.sums[names.MEMORY].sparse
    assert [disk.head for disk in record.disks] == [None]
    assert machine.disks[0].layers == record.disks[0].layers
    assert {path: stamp.sha256 for path, stamp in read_stamps(kept / _STAMPS).items()} == {
        path: known.sha256 for path, known in record.sums.items()
    }


def test_what_a_machine_was_suspended_with_names_its_heads(tmp_path: Path, kept: Path, version: int) -> None:
    record = _read(tmp_path, kept / _SUSPENDED)
    assert (record.version, record.state, record.spec) == (version, "running", _SPEC)
    assert [disk.head is not None and disk.head.startswith("disks/root-") for disk in record.disks] == [True]


def test_the_contents_of_an_exported_file_are_taken_in(kept: Path, version: int) -> None:
    manifest = decode_manifest((kept / _MANIFEST).read_bytes())
    assert (manifest.machine, manifest.name, manifest.record.version) == ("web", "one", version)
    assert manifest.record.description == "before the change"
    assert set(manifest.data) == set(manifest.record.sums) == snapshot_layers(manifest.record) | {names.MEMORY, names.STATE}


def test_what_is_still_to_be_done_is_known(kept: Path, version: int) -> None:
    entry = journal.pending(kept)
    assert entry is not None
    assert (entry.verb, entry.step, entry.version, entry.stands) == ("restore", "publish", 1, True)
    assert read_due(kept) == Due(former=read_machine(kept).identity, moved=version > 1)


def test_the_spares_that_are_wanted_are_known(tmp_path: Path, kept: Path) -> None:
    home = Home(tmp_path)
    (home.spares / "origin").mkdir(parents=True)
    shutil.copy(kept / WANTED, home.spares / "origin" / WANTED)
    folder = "/var/lib/insula/machines/web"
    assert read_wanted(home, "origin") == Wanted(1, 1, "web@one", folder, f"{folder}/snapshots/one")
