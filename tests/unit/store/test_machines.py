"""Machines on disk: whole or not there, and a broken one hurts no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from insula.errors import AlreadyExists, DamagedRecord, NotFound
from insula.model.identity import new_identity
from insula.model.spec import MachineSpec
from insula.store import names
from insula.store.events import MOST_BYTES, append_event, read_events
from insula.store.machines import (
    RECORD_VERSION,
    Boot,
    DiskRecord,
    ImageUse,
    MachineRecord,
    machine_folder,
    machine_names,
    new_machine_folder,
    publish_machine,
    read_machine,
    remove_machine_folder,
    rename_machine_folder,
    sweep_machines,
    write_machine,
)
from insula.store.names import Home, default_home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def _record() -> MachineRecord:
    identity = new_identity()
    return MachineRecord(
        version=RECORD_VERSION,
        id=identity.uuid,
        kind="vm",
        created=1.5,
        image=ImageUse("tiny", "0" * 64),
        spec=MachineSpec(),
        identity=identity,
        boot=Boot(kind="direct", kernel="layers/k", initrd="layers/i", cmdline="quiet"),
        disks=[DiskRecord("root", ["layers/root.qcow2"], "disks/root-0.qcow2", 1 << 30)],
        arch="amd64",
    )


def _make(home: Home, name: str) -> Path:
    with new_machine_folder(home) as staged:
        write_machine(staged, _record())
        return publish_machine(home, staged, name)


def test_a_machine_is_read_as_it_was_written(home: Home) -> None:
    record = _record()
    with new_machine_folder(home) as staged:
        write_machine(staged, record)
        folder = publish_machine(home, staged, "web")
    assert read_machine(folder) == record
    assert machine_names(home) == ["web"]
    assert (folder / names.RECORD).stat().st_mode & 0o777 == 0o600


def test_a_failed_creation_leaves_nothing(home: Home) -> None:
    with pytest.raises(RuntimeError), new_machine_folder(home) as staged:
        (staged / "half").write_text("made")
        raise RuntimeError
    assert list(home.machines.iterdir()) == []


def test_a_taken_name_is_refused_and_the_first_machine_untouched(home: Home) -> None:
    first = read_machine(_make(home, "web"))
    with pytest.raises(AlreadyExists, match="'web' is taken"):
        _make(home, "web")
    assert read_machine(home.machine("web")) == first
    assert machine_names(home) == ["web"]


def test_renaming_onto_a_machine_is_refused(home: Home) -> None:
    _make(home, "web")
    _make(home, "db")
    with pytest.raises(AlreadyExists):
        rename_machine_folder(home, "web", "db")
    assert machine_names(home) == ["db", "web"]


def test_what_dead_commands_left_is_swept_and_what_lives_is_not(home: Home) -> None:
    _make(home, "web")
    ended: list[Path] = []
    (home.machines / ".gone-1").mkdir()
    (home.machines / ".new-dead").mkdir()
    (home.machines / ".new-dead" / "lock").touch()
    with new_machine_folder(home) as staged:
        assert sorted(sweep_machines(home, end=ended.append)) == [".gone-1", ".new-dead"]
        assert staged.exists()
    assert machine_names(home) == ["web"]
    assert ended == [home.machines / ".new-dead"]


def test_deleting_takes_everything(home: Home) -> None:
    remove_machine_folder(home, _make(home, "web"))
    assert list(home.machines.iterdir()) == []


def test_an_unknown_machine_offers_the_nearest(home: Home) -> None:
    _make(home, "website")
    with pytest.raises(NotFound, match="'websit'") as error:
        machine_folder(home, "websit")
    assert error.value.hint == "did you mean website?"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "damaged"),
        (b"{", "damaged"),
        (b"[]", "damaged"),
        (b'{"version": 1}', "missing required field"),
        (b"\xff\xfe", "damaged"),
    ],
)
def test_damage_is_told_with_the_file(home: Home, content: bytes, says: str) -> None:
    folder = _make(home, "web")
    (folder / names.RECORD).write_bytes(content)
    with pytest.raises(DamagedRecord, match=says) as error:
        read_machine(folder)
    assert str(folder / names.RECORD) in error.value.message


def test_unknown_fields_and_newer_formats_are_refused(home: Home) -> None:
    folder = _make(home, "web")
    good = json.loads((folder / names.RECORD).read_bytes())
    (folder / names.RECORD).write_text(json.dumps({**good, "extra": 1}))
    with pytest.raises(DamagedRecord, match="extra"):
        read_machine(folder)
    (folder / names.RECORD).write_text(json.dumps({**good, "version": 99}))
    with pytest.raises(DamagedRecord, match="newer Insula"):
        read_machine(folder)
    (folder / names.RECORD).write_text(json.dumps({**good, "version": 99, "extra": 1}))
    with pytest.raises(DamagedRecord, match="newer Insula"):
        read_machine(folder)


def test_a_record_written_again_has_the_format_of_today(home: Home) -> None:
    folder = _make(home, "web")
    old = {key: value for key, value in json.loads((folder / names.RECORD).read_bytes()).items() if key != "sums"} | {
        "version": 1
    }
    (folder / names.RECORD).write_text(json.dumps(old))
    record = read_machine(folder)
    assert (record.version, record.sums) == (1, {})
    write_machine(folder, record)
    assert read_machine(folder).version == RECORD_VERSION


def test_events_come_back_in_order_and_stay_bounded(home: Home) -> None:
    folder = _make(home, "web")
    for number in range(3000):
        append_event(folder, "tick", number=number, filler="x" * 100)
    numbers = [event["data"]["number"] for event in read_events(folder) if isinstance(event["data"], dict)]
    assert numbers == list(range(numbers[0], 3000))
    assert (folder / names.EVENTS).stat().st_size <= MOST_BYTES
    assert (folder / names.EVENTS_OLD).stat().st_size <= MOST_BYTES


def test_a_torn_event_is_passed_over(home: Home) -> None:
    folder = _make(home, "web")
    append_event(folder, "first")
    with open(folder / names.EVENTS, "ab") as stream:
        stream.write(b'{"time": 1, "ev\n\xff\xff\n[1]\n')
    append_event(folder, "second")
    assert [event["event"] for event in read_events(folder)] == ["first", "second"]


def test_every_name_in_a_machine_has_a_copy_rule() -> None:
    of_a_machine = {names.RECORD, names.LOCK, names.JOURNAL, names.EVENTS, names.EVENTS_OLD, names.CONSOLE, names.CONSOLE_OLD,
                    names.QEMU_LOG, names.LAST_END, names.VERIFIED_LAYERS, names.DISKS, names.LAYERS, names.FIRMWARE,
                    names.TPM, names.RUN, names.RUN_NEXT, names.SNAPSHOTS, names.SUSPENDED, names.ORIGIN}  # fmt: skip
    assert set(names.ON_COPY) == of_a_machine


def test_the_home_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSULA_HOME", "/srv/x")
    assert default_home().root == Path("/srv/x")
    monkeypatch.delenv("INSULA_HOME")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_home().root == Path("/data/insula")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_home().root == Path("/var/lib/insula")


@pytest.mark.parametrize("name", ["", ".", "..", "../images", "/etc", "web/disks", ".new-1", "no\0where", "a" * 300])
def test_nothing_but_a_machine_is_found_by_a_hostile_name(home: Home, name: str) -> None:
    _make(home, "web").joinpath("disks").mkdir()
    (home.machines / ".new-1").mkdir()
    with pytest.raises(NotFound):
        machine_folder(home, name)


def test_a_link_to_a_folder_is_no_machine(home: Home, tmp_path: Path) -> None:
    home.prepare()
    (home.machines / "web").symlink_to(tmp_path)
    with pytest.raises(NotFound):
        machine_folder(home, "web")


def test_a_new_folder_that_was_swept_before_it_was_locked_is_made_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    swept: list[str] = []
    ended: list[Path] = []
    make = Path.mkdir

    def make_and_lose(path: Path, *arguments: int, **options: object) -> None:
        make(path, *arguments, **options)  # type: ignore[arg-type]  # passed on as it came
        if path.name.startswith(names.NEW_PREFIX) and not swept:
            swept.extend(sweep_machines(home, end=ended.append))

    home.prepare()
    monkeypatch.setattr(Path, "mkdir", make_and_lose)
    with new_machine_folder(home) as staged:
        assert staged.is_dir()
        assert sweep_machines(home, end=ended.append) == []
    assert len(swept) == 1
    assert not staged.exists()
