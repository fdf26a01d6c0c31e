"""Machines of other kinds are rewound and multiplied, too: paused, without an agent, with two disks, with UEFI variables."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import insula
from insula.disks.overlays import create_overlay
from insula.host.watch import Watch
from insula.resources.groups import drop
from insula.store import names
from insula.store.names import Home
from tests.faults.rewound import left_over, settled, strike, victim
from tests.framework.doors import run_cli
from tests.framework.points import NEVER, Points

pytestmark = [pytest.mark.guest, pytest.mark.limit(120)]


def test_a_paused_guest_stays_so_and_comes_back_so(home: Path, running: str) -> None:
    machine = insula.connect(home).get(running)
    machine.exec("sh", "-c", "echo old > /root/note; sync; echo memo > /run/memo", check=True)
    machine.pause()
    snapshot = machine.snapshot("still")
    assert (machine.state, snapshot.status.state, snapshot.status.pause) == ("paused", "paused", 0.0)
    with snapshot.fork()[0] as child:
        assert child.exec("cat", "/run/memo", check=True).stdout == "memo\n"
    machine.resume()
    machine.exec("sh", "-c", "echo new > /root/note; sync", check=True)
    snapshot.restore()
    assert (machine.state, machine.show().reason) == ("paused", None), "somebody asked for it"
    machine.resume()
    assert machine.exec("cat", "/root/note", "/run/memo", check=True).stdout == "old\nmemo\n"
    machine.pause().suspend()
    assert machine.state == "suspended"
    assert machine.start().exec("cat", "/run/memo", check=True).stdout == "memo\n"
    assert left_over(home) == []


def _restored_to_stand(home: Path, name: str, snapshot: insula.Snapshot | None = None) -> insula.Snapshot:
    """The machine stands, restored from a snapshot whose clock is decades behind."""
    machine = insula.connect(home).get(name)
    if snapshot is None:
        machine.exec("sh", "-c", "echo memo > /run/memo; hostname other; date -s @1000000000", check=True)
        snapshot = machine.pause().snapshot("still")
    snapshot.restore(keep=False)
    assert machine.state == "paused"
    assert (home / "machines" / name / names.RUN / names.DUE).exists()
    return snapshot


def _check_renewed(home: Path, name: str) -> None:
    said = insula.connect(home).get(name).exec("sh", "-c", "date +%s; hostname; cat /run/memo", check=True).stdout.split()
    assert abs(int(said[0]) - time.time()) < 3600
    assert said[1:] == [name, "memo"]
    assert not (home / "machines" / name / names.RUN / names.DUE).exists()


def test_a_guest_restored_to_stand_is_told_what_is_new_when_it_is_resumed(home: Path, running: str) -> None:
    machine = insula.connect(home).get(running)
    snapshot = _restored_to_stand(home, running)
    machine.resume()
    _check_renewed(home, running)
    _restored_to_stand(home, running, snapshot)
    machine.snapshot("again").restore(keep=False)  # of one to whom that is still due
    machine.suspend().start()
    _check_renewed(home, running)


def test_a_resume_that_dies_leaves_to_the_next_what_the_guest_is_to_be_told(home: Path, running: str) -> None:
    assert _kill_resume(home, running, _restored_to_stand(home, running), "1") == 1


@pytest.mark.full
@pytest.mark.limit(900)
def test_a_resume_killed_before_any_change_leaves_to_the_next_what_is_due(home: Path, running: str, points: Points) -> None:
    snapshot = _restored_to_stand(home, running)
    points.each(lambda change: _kill_resume(home, running, snapshot, f"c{change}"), rounds=6, least=10)


@pytest.mark.full
@pytest.mark.limit(900)
@pytest.mark.parametrize(("verb", "exchange"), [("restore-discard", names.RUN_NEXT), ("wake", names.SUSPENDED)])
def test_a_guest_that_goes_on_though_its_command_died_is_told_what_is_new_by_the_next(
    home: Path, running: str, points: Points, verb: str, exchange: str
) -> None:
    """From the instant on at which one QEMU takes the other's place there is no way back. Until it is let go of, though, the new
    one ends with the command, and the machine is off."""
    machine, told = insula.connect(home).get(running), []

    def prepare() -> None:
        machine.exec("sh", "-c", "echo memo > /run/memo; hostname other; date -s @1000000000", check=True)
        if verb == "wake":
            machine.suspend()
            drop(Home(home), machine.show().id, timeout=30)  # else whoever comes next removes its group, or who settles it
        elif not machine.snapshots():
            machine.snapshot("base")

    def kill(change: int) -> int:
        prepare()
        return strike(home, f"c{before + change}", verb, running, check) - before

    def check(status: int) -> None:
        due = (home / "machines" / running / names.RUN / names.DUE).exists()
        run_cli(home, "snapshot", "delete", "--json", f"{running}@nothing")  # a verb that finishes the dead one's work
        if verb.startswith("restore") and settled(home, running) == "stopped":
            insula.Snapshot(machine, "base").restore(keep=False)
        elif due:
            told.append(status)
        assert machine.state == "running"
        _check_renewed(home, running)
        assert left_over(home) == []

    prepare()
    changes = victim(home, f"c{NEVER}", verb, running)[1]
    before = next(number for number, one in enumerate(changes, 1) if one.startswith("os.rename") and f"/{exchange}'" in one)
    points.each(kill, rounds=6, least=4)
    assert told, "it was never killed while anything was due"


def _kill_resume(home: Path, name: str, snapshot: insula.Snapshot, step: str) -> int:
    """Kill a `resume`; how many steps came. Nobody is let in before the guest has been told, now or later."""
    _restored_to_stand(home, name, snapshot)

    def check(status: int) -> None:
        said = run_cli(home, "exec", "--wait", "0", name, "--", "date", "+%s")
        if status == 0 or said.returncode == 0:
            assert abs(int(said.stdout) - time.time()) < 3600
        insula.connect(home).get(name).resume()
        _check_renewed(home, name)
        assert left_over(home) == []

    return strike(home, step, "resume", name, check)


def test_a_guest_without_agent_is_rewound_and_forked(home: Path, tiny: str, name: str) -> None:
    machine = insula.connect(home).create(tiny, name=name, memory="128M", network="none")
    path = home / "machines" / name / names.RECORD
    record = json.loads(path.read_bytes())
    record["boot"] |= {"cmdline": record["boot"]["cmdline"] + " insula.init=/bin/sh", "agent": False}
    path.write_text(json.dumps(record))
    machine.start()
    snapshot = machine.snapshot("one")
    with machine.fork()[0] as child:
        assert child.state == "running"
        renewed = child.show().renewed
        assert renewed is not None
        assert "hostname" in renewed.left
    snapshot.restore()
    assert machine.state == "running"
    machine.suspend().start()
    assert machine.state == "running"
    assert left_over(home) == []


def test_two_disks_are_of_one_instant(home: Path, tiny: str, name: str) -> None:
    machine = insula.connect(home).create(tiny, name=name, memory="128M", network="none")
    folder = home / "machines" / name
    create_overlay(folder / names.DISKS / "data-0.qcow2", 64 << 20)
    record = json.loads((folder / names.RECORD).read_bytes())
    record["disks"].append({"name": "data", "layers": [], "head": f"{names.DISKS}/data-0.qcow2", "size": 64 << 20})
    (folder / names.RECORD).write_text(json.dumps(record))
    machine.start()
    write = "echo {0} > /root/note; sync; echo {0} | dd of=/dev/vdb bs=512 conv=sync 2>/dev/null; sync"
    read = "cat /root/note; head -c 3 /dev/vdb"
    machine.exec("sh", "-c", write.format("old"), check=True)
    snapshot = machine.snapshot("one")
    machine.exec("sh", "-c", write.format("new"), check=True)
    with machine.fork()[0] as child:
        assert child.exec("sh", "-c", read, check=True).stdout == "new\nnew"
    with snapshot.fork()[0] as child:
        assert child.exec("sh", "-c", read, check=True).stdout == "old\nold"
    snapshot.restore()
    assert machine.exec("sh", "-c", read, check=True).stdout == "old\nold"
    insula.Snapshot(machine, "before-restore").restore(keep=False)
    assert machine.exec("sh", "-c", read, check=True).stdout == "new\nnew"
    machine.suspend().start()
    assert machine.exec("sh", "-c", read, check=True).stdout == "new\nnew"
    assert left_over(home) == []


def test_uefi_variables_come_back(home: Path, tiny: str, name: str) -> None:
    """The firmware writes them as it comes up: nothing of its first instants is there before it ran."""
    machine = insula.connect(home).create(tiny, name=name, memory="128M", network="none", firmware="uefi")
    folder = home / "machines" / name
    path = folder / names.RECORD
    record = json.loads(path.read_bytes())
    record["boot"] = {"kind": "disk", "kernel": None, "initrd": None, "cmdline": "", "agent": False}
    path.write_text(json.dumps(record))
    machine.start()
    early = machine.snapshot("early")
    before = (folder / names.SNAPSHOTS / "early" / names.VARIABLES).read_bytes()
    variables = folder / json.loads(path.read_bytes())["variables"]
    with Watch() as watch:
        watch.add(variables.parent)
        while variables.read_bytes() == before:
            assert watch.wait_change(timeout=60), "the firmware wrote no variable"
    machine.pause()
    later = machine.snapshot("later")
    after = (folder / names.SNAPSHOTS / "later" / names.VARIABLES).read_bytes()
    assert after != before
    early.restore(keep=False)
    machine.pause()
    shown = folder / json.loads(path.read_bytes())["variables"]
    assert len(shown.read_bytes()) == len(before)
    later.restore(keep=False)
    assert machine.state == "paused"
    assert (folder / json.loads(path.read_bytes())["variables"]).read_bytes() == after
    with later.fork()[0] as child:
        assert child.state == "running"
    machine.stop(force=True)
    stopped = machine.snapshot("off")
    (folder / json.loads(path.read_bytes())["variables"]).write_bytes(b"other")
    stopped.restore(keep=False)
    assert (folder / json.loads(path.read_bytes())["variables"]).read_bytes() == after
    assert left_over(home) == []
