"""What a dead command left: an ephemeral machine it never came to own goes, everything else stays."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from insula.errors import Busy
from insula.operations import journal
from insula.operations.context import Context
from insula.operations.recover import recover, sweep
from insula.store import names
from insula.store.events import read_events
from insula.store.locks import machine_lock
from insula.store.machines import machine_names, new_machine_folder, publish_machine, write_machine
from insula.store.names import Home
from tests.unit.store.test_machines import _record


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def _make(home: Home, name: str, *, ephemeral: bool, started: bool) -> Path:
    with new_machine_folder(home, "run") as staged:
        write_machine(staged, msgspec.structs.replace(_record(), ephemeral=ephemeral))
        if not started:
            journal.note(staged, "start", "start QEMU")
        return publish_machine(home, staged, name)


def test_only_an_ephemeral_machine_whose_start_died_is_swept_away(home: Home) -> None:
    for ephemeral in (True, False):
        for started in (True, False):
            _make(home, f"m-{ephemeral}-{started}".lower(), ephemeral=ephemeral, started=started)
    sweep(Context(home))
    assert machine_names(home) == ["m-false-false", "m-false-true", "m-true-true"]
    assert list(home.machines.glob(".*")) == []


def test_one_that_is_being_started_stays(home: Home) -> None:
    folder = _make(home, "web", ephemeral=True, started=False)
    with machine_lock(folder / names.LOCK, "web", "start"):
        sweep(Context(home))
        assert machine_names(home) == ["web"]


def test_a_machine_is_locked_from_its_first_instant_on_and_says_by_whom(home: Home) -> None:
    with new_machine_folder(home, "run") as staged:
        write_machine(staged, msgspec.structs.replace(_record(), ephemeral=True))
        journal.note(staged, "create", "give it its name")
        folder = publish_machine(home, staged, "web")
        sweep(Context(home))
        with pytest.raises(Busy, match="web is busy: run, started"), machine_lock(folder / names.LOCK, "web", "stop"):
            pass
    sweep(Context(home))
    assert machine_names(home) == []


def test_a_stopped_machine_keeps_its_files_and_loses_the_note(home: Home) -> None:
    folder = _make(home, "web", ephemeral=False, started=False)
    assert recover(Context(home), folder)
    assert journal.pending(folder) is None
    assert [event["event"] for event in read_events(folder)] == ["recovered"]
    assert recover(Context(home), folder)
    assert len(list(read_events(folder))) == 1
