"""Several commands at one machine at once while it is rewound or multiplied, things deleted that are in use, and too little of
memory or disk: clear errors, and nobody is hurt who was not meant."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import insula
from insula.errors import InsulaError
from tests.faults.rewound import left_over
from tests.faults.small_disk import SmallDisk, home_on_small_disk
from tests.framework.doors import cli_at, popen_cli, run_cli

pytestmark = [pytest.mark.guest, pytest.mark.limit(120)]

_SHAPE = ("--memory", "128M", "--network", "none")


def _code(done: subprocess.CompletedProcess[bytes]) -> str:
    code: str = json.loads(done.stderr.splitlines()[-1])["code"]
    return code


def test_while_a_snapshot_is_taken_others_are_told_who_is_at_work(home: Path, running: str) -> None:
    machine = insula.connect(home).get(running)
    with cli_at(home, b"make new heads", "snapshot", "create", f"{running}@one") as first:
        first.send_signal(signal.SIGSTOP)  # it keeps the machine's lock for as long as we like
        for words in (("snapshot", "create"), ("suspend",), ("fork",), ("stop",), ("pause",), ("delete",)):
            done = run_cli(home, *words, "--json", running)
            if words != ("delete",):
                assert _code(done) == "busy", words
                assert b"snapshot, started" in done.stderr
            assert done.returncode != 0
        assert machine.exec("true").code == 0
        first.send_signal(signal.SIGCONT)
        assert first.wait(60) == 0
    assert [one.name for one in machine.snapshots()] == ["one"]
    assert left_over(home) == []


def test_two_snapshots_at_once_are_one_after_the_other_or_refused(home: Path, running: str) -> None:
    words = [["snapshot", "create", "--json", f"{running}@{name}"] for name in ("one", "two", "one")]
    children = [popen_cli(home, *each, stderr=subprocess.PIPE) for each in words]
    ends = [(child.communicate(timeout=60)[1], child.returncode) for child in children]
    made = {one.name for one in insula.connect(home).get(running).snapshots()}
    assert made
    assert sum(status == 0 for _, status in ends) == len(made)
    assert {json.loads(errors)["code"] for errors, status in ends if status} <= {"busy", "snapshot_exists"}
    assert insula.connect(home).get(running).exec("true").code == 0
    assert left_over(home) == []


def test_a_snapshot_is_not_deleted_under_a_fork_of_it(home: Path, running: str) -> None:
    machine = insula.connect(home).get(running)
    machine.snapshot("base")
    deleting = popen_cli(home, "snapshot", "delete", "--json", f"{running}@base", stderr=subprocess.PIPE)
    done = run_cli(home, "fork", "--json", "--name", f"{running[:40]}-f", f"{running}@base")
    errors = deleting.communicate(timeout=60)[1]
    if deleting.returncode != 0:
        assert json.loads(errors)["code"] == "busy"
    if done.returncode != 0:
        assert _code(done) in ("busy", "snapshot_not_found")
    assert 0 in (deleting.returncode, done.returncode)
    for status in insula.connect(home).list():
        if status.name == f"{running[:40]}-f":
            child = insula.connect(home).get(status.name)
            assert child.exec("hostname", check=True).stdout == f"{status.name}\n"
            child.delete(force=True)
    assert left_over(home) == []


@pytest.mark.parametrize("step", [b"make new heads", b"write its memory", b"make sure of it"])
def test_force_goes_before_a_snapshot(home: Path, running: str, step: bytes) -> None:
    machine = insula.connect(home).get(running)
    with cli_at(home, step, "snapshot", "create", f"{running}@one") as taking:
        done = run_cli(home, "stop", "--force", running)
        assert done.returncode == 0, done.stderr.decode()
        status = taking.wait(60)
        assert taking.stderr is not None
        assert b"Traceback" not in taking.stderr.read()
    assert machine.state == "stopped"
    run_cli(home, "snapshot", "delete", "--json", f"{running}@nothing")  # finishes the work of the one that was cut off
    assert [one.name for one in machine.snapshots()] == (["one"] if status == 0 else [])
    assert left_over(home) == []


@pytest.mark.full
def test_of_two_first_runs_one_boots_and_the_other_waits_for_it(home: Path, tiny: str) -> None:
    shape = ["--memory", "136M", "--network", "none"]
    words = ["run", *shape, tiny, "--", "hostname"]
    children = [popen_cli(home, *words, stderr=subprocess.PIPE) for _ in range(2)]
    ends = [(*child.communicate(timeout=110), child.returncode) for child in children]
    assert [status for _, _, status in ends] == [0, 0]
    assert len({output for output, _, _ in ends}) == 2
    assert sum(b"start QEMU" in errors for _, errors, _ in ends) == 1
    assert len([state for state in insula.connect(home).warm_states() if state.memory == 136 << 20]) == 1
    assert left_over(home) == []


def test_what_forks_rest_on_can_be_deleted_under_them(home: Path, running: str) -> None:
    """The parent, its snapshot and the warm state go; a fork and its fork live on, and their disks are whole after a restart."""
    parent = insula.connect(home).get(running)
    parent.exec("sh", "-c", "echo precious > /root/note; sync; echo memo > /run/memo", check=True)
    snapshot = parent.snapshot("base")
    child = snapshot.fork(name=f"{running[:40]}-c")[0]
    grandchild = child.fork(name=f"{running[:40]}-g")[0]
    try:
        snapshot.delete()
        parent.delete(force=True)
        insula.connect(home).delete_warm("tiny")
        assert left_over(home) == []
        for machine in (child, grandchild):
            assert machine.exec("cat", "/root/note", "/run/memo", check=True).stdout == "precious\nmemo\n"
        child.delete(force=True)
        later = grandchild.snapshot("later")
        grandchild.exec("sh", "-c", "rm /root/note; dd if=/dev/zero of=/root/big bs=1M count=4; sync", check=True)
        later.restore(keep=False)
        assert grandchild.exec("cat", "/root/note", "/run/memo", check=True).stdout == "precious\nmemo\n"
        assert left_over(home) == []
    finally:
        for machine in (child, grandchild):
            with contextlib.suppress(InsulaError):
                machine.delete(force=True)


# -- a full disk ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def disk(tmp_path: Path, home: Path, tiny: str) -> Iterator[SmallDisk]:
    with home_on_small_disk(tmp_path / "small", "300m", home) as disk:
        yield disk


# Room that is left, in bytes: none at all, for the heads but not the memory, for a part of the memory, for all but the records.
_ROOMS = [0, 300 << 10, 4 << 20, 12 << 20, 20 << 20]
_NO_ROOM = "no-space"  # the guest wrote by itself, as one does now and then, and waits for room
_VERBS = {
    "snapshot": ("snapshot", "create", "--json", "big@one"),
    "suspend": ("suspend", "--json", "big"),
    "fork": ("fork", "--json", "--name", "small", "big"),
    "restore": ("snapshot", "restore", "--json", "big@base"),
}


@pytest.mark.root
@pytest.mark.parametrize("verb", ["snapshot", *(pytest.param(each, marks=pytest.mark.full) for each in list(_VERBS)[1:])])
def test_on_a_full_disk_it_is_refused_and_the_guest_goes_on(disk: SmallDisk, verb: str) -> None:
    # Booted, and so with memory of its own: a tmpfs takes room even for what is only read of a file's holes.
    disk.do("run", "--cold", "--name", "big", *_SHAPE, "tiny")
    disk.do("exec", "big", "--", "sh", "-c", "echo memo > /run/memo; echo note > /root/note; sync")
    disk.do("snapshot", "create", "big@base")
    refused = 0
    for room in _ROOMS:
        disk.fill(leave=room)
        done = disk.insula(*_VERBS[verb])
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        if done.returncode:
            refused += 1
            assert json.loads(done.stderr.splitlines()[-1])["code"] == "no_space", done.stderr
            assert set(disk.list()) == {"big"}
            big = disk.list()["big"]
            assert big["state"] == "running" or big["reason"] == _NO_ROOM, big
        disk.empty()
        if disk.list()["big"]["reason"] == _NO_ROOM:
            disk.do("resume", "big")
        _bring_back(disk)
        assert left_over(disk.seen) == []
        assert (
            disk.do("exec", "big", "--", "sh", "-c", "cat /run/memo /root/note; echo more >> /root/more; sync") == b"memo\nnote\n"
        )
    assert refused >= 2, "the disk was never full"
    disk.do(*_VERBS[verb])


def _bring_back(disk: SmallDisk) -> None:
    """The machine runs, has the snapshot `base` alone, and is the only one; whatever a verb began is finished."""
    disk.insula("snapshot", "delete", "big@one")
    disk.insula("snapshot", "delete", "big@before-restore")
    disk.insula("delete", "--force", "small")
    if disk.list()["big"]["state"] == "suspended":
        disk.do("start", "big")
