"""A machine with a TPM: what that knows is of the same instant as all else in a snapshot, and each machine has one of its own."""

from __future__ import annotations

import io
import os
import select
from pathlib import Path

import pytest

import insula
from insula.engines.qemu import migrate
from insula.errors import InsulaError, UsageError
from insula.store import names
from tests.faults.rewound import left_over
from tests.framework.processes import inhabitants, kill_and_wait, processes_of, wait_settled
from tests.framework.tpm import define, extend, read, register, write

pytestmark = [pytest.mark.guest, pytest.mark.limit(180)]

_BLANK = "0" * 64


@pytest.fixture
def secured(home: Path, tiny: str, name: str) -> insula.Machine:
    """A running machine with a TPM that keeps 8 bytes."""
    machine = insula.connect(home).run(tiny, name=name, memory="128M", network="none", tpm=True)
    define(machine)
    write(machine, b"former..")
    return machine


def test_registers_and_what_is_kept_are_of_the_snapshots_instant(home: Path, secured: insula.Machine) -> None:
    assert register(secured) == _BLANK
    measured = extend(secured, b"one")
    snapshot = secured.snapshot("measured")
    assert extend(secured, b"two") != measured != _BLANK
    write(secured, b"later...")
    with snapshot.fork()[0] as child:
        assert (register(child), read(child)) == (measured, b"former..")
        write(child, b"childs..")
        renewed = child.show().renewed
        assert renewed is not None
        assert "tpm" in renewed.left
    assert read(secured) == b"later..."
    snapshot.restore()
    assert (register(secured), read(secured)) == (measured, b"former..")
    secured.suspend().start()
    assert (register(secured), read(secured)) == (measured, b"former..")
    assert left_over(home) == []


@pytest.mark.full
def test_a_machine_whose_tpm_was_killed_says_so_and_goes_on(home: Path, secured: insula.Machine) -> None:
    assert secured.show().problem is None
    kill_and_wait(swtpm := _swtpm(home, secured), [swtpm])
    assert "its TPM has ended" in str(secured.status.problem)
    assert (secured.state, secured.exec("echo", "here", check=True).stdout) == ("running", "here\n")
    for act in (secured.snapshot, secured.fork, secured.suspend):
        with pytest.raises(InsulaError, match="its TPM has ended") as refusal:
            act()
        assert refusal.value.code == "tpm_ended"
    assert (secured.state, secured.exec("echo", "here", check=True).stdout) == ("running", "here\n")
    assert left_over(home) == []
    secured.restart()
    assert (secured.status.problem, read(secured)) == (None, b"former..")


@pytest.mark.full
def test_a_tpm_ends_with_its_machine(home: Path, secured: insula.Machine) -> None:
    folder = home / "machines" / secured.name
    kill_and_wait(processes_of(folder)["qemu"], _room(home, secured))
    wait_settled(folder)
    secured.start()
    assert read(secured) == b"former.."
    descriptors = [os.pidfd_open(pid) for pid in _room(home, secured)]
    secured.stop(force=True)
    assert len(descriptors) == 2  # swtpm, and process 1 of its room
    for descriptor in descriptors:
        assert select.select([descriptor], [], [], 10)[0], "a process of its TPM did not end"
        os.close(descriptor)
    assert left_over(home) == []


@pytest.mark.full
def test_a_state_that_is_none_is_told_and_left_alone(home: Path, secured: insula.Machine) -> None:
    secured.stop()
    (kept,) = (home / "machines" / secured.name / names.TPM).iterdir()
    (state,) = (path for path in kept.iterdir() if not path.name.startswith("."))
    content = state.read_bytes()
    state.write_bytes(content[:-100] + bytes(100))
    with pytest.raises(InsulaError, match="its TPM cannot begin") as refusal:
        secured.start()
    assert refusal.value.code == "tpm_damaged"
    assert (secured.state, _room(home, secured)) == ("stopped", [])
    state.write_bytes(content)
    assert read(secured.start()) == b"former.."


@pytest.mark.full
def test_every_way_to_take_a_state_takes_the_tpms(home: Path, secured: insula.Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = extend(secured, b"one")
    whole = secured.snapshot("whole")
    with whole.fork()[0] as child:
        changed = child.snapshot("changed")
        monkeypatch.setattr(migrate, "_PROVED", "no board")
        stream = child.snapshot("stream")
        assert [each.status.method for each in (whole, changed, stream)] == ["mapped-ram", "changed-pages", "stream"]
        assert extend(child, b"two") != measured
        for each in (changed, stream):
            write(child, b"later...")
            each.restore(keep=False)
            assert (register(child), read(child)) == (measured, b"former..")
            with each.fork()[0] as grandchild:
                assert (register(grandchild), read(grandchild)) == (measured, b"former..")
    assert left_over(home) == []


@pytest.mark.full
def test_what_a_stopped_machines_tpm_keeps_is_snapshotted_cloned_and_moved(
    home: Path, secured: insula.Machine, tmp_path: Path
) -> None:
    running = secured.snapshot("running")
    secured.stop()
    stopped = secured.snapshot("stopped")
    clone = secured.clone(f"{secured.name}-c")
    write(secured.start(), b"later...")
    moved = []
    for snapshot in (running, stopped):
        file = io.BytesIO()
        snapshot.export(file)
        file.seek(0)
        moved.append(insula.connect(tmp_path / "home").import_snapshot(file, snapshot.name).machine)
    try:
        for machine in (clone, *moved):  # as they come: switched off
            machine.start(cold=True)
            assert (register(machine), read(machine)) == (_BLANK, b"former..")
            write(machine, b"another.")
        moved[0].stop(force=True)
        moved[0].snapshots()[0].restore(keep=False)
        assert read(moved[0]) == b"former.."
        stopped.restore()
        assert (secured.state, read(secured.start()), register(secured)) == ("stopped", b"former..", _BLANK)
    finally:
        for machine in (clone, *moved):
            machine.delete(force=True)
    assert left_over(home) == []


def test_machines_with_a_tpm_share_no_state_made_ahead(home: Path, tiny: str) -> None:
    with pytest.raises(UsageError) as refusal:
        insula.connect(home).warm(tiny, memory="128M", network="none", tpm=True)
    assert refusal.value.code == "tpm_not_shared"


def _room(home: Path, machine: insula.Machine) -> list[int]:
    """The processes of its TPM."""
    return inhabitants(home / "machines" / machine.name / names.TPM)


def _swtpm(home: Path, machine: insula.Machine) -> int:
    (pid,) = (pid for pid in _room(home, machine) if Path(f"/proc/{pid}/comm").read_text() == "swtpm\n")
    return pid
