"""Rewind and multiply on real guests, through both doors: what is on disk, in memory and running, before and after, in parent,
child and grandchild."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import insula
from tests.framework.doors import Door, Refused, popen_cli, run_cli

pytestmark = pytest.mark.limit(180)

_numbers = itertools.count(1)

# A process whose life is a number that grows, in memory alone.
_COUNTER = "n=0; while :; do n=$((n+1)); echo $n > /dev/shm/n.new; mv /dev/shm/n.new /dev/shm/n; sleep 0.05; done"


@pytest.fixture(scope="module")
def source(home: Path, tiny: str) -> Iterator[str]:
    """A running machine with a file on disk, one in memory and a counting process."""
    name = f"rewind-{next(_numbers)}"
    machine = insula.connect(home).run(tiny, name=name, memory="128M", network="none")
    try:
        machine.exec("sh", "-c", "mkdir -p /dev/shm && (mountpoint -q /dev/shm || mount -t tmpfs none /dev/shm)", check=True)
        machine.exec("sh", "-c", f"setsid sh -c '{_COUNTER}' > /dev/null 2>&1 < /dev/null & echo $! > /dev/shm/pid", check=True)
        _write(machine, "first")
        yield name
    finally:
        machine.delete(force=True)


@pytest.fixture
def pattern(home: Path) -> Iterator[str]:
    """Names for this test's forks, which are deleted afterwards."""
    stem = f"fork{next(_numbers)}"
    yield f"{stem}-{{n}}"
    for machine in insula.connect(home).list():
        if machine.name.startswith(stem):
            insula.connect(home).get(machine.name).delete(force=True)


def _write(machine: insula.Machine, text: str) -> None:
    """On disk, in memory, and a blob whose sum is kept in memory."""
    notes = f"echo {text} | tee /root/note > /dev/shm/note"
    script = f"{notes}; head -c 1000000 /dev/urandom > /root/blob; md5sum /root/blob > /dev/shm/sum"
    machine.exec("sh", "-c", script, check=True)


def _notes(machine: insula.Machine) -> list[str]:
    """Both notes, once the blob was found as its sum says, also when it is read from the disk anew."""
    machine.exec("sh", "-c", "sync; echo 3 > /proc/sys/vm/drop_caches; md5sum -c /dev/shm/sum", check=True)
    return machine.exec("cat", "/root/note", "/dev/shm/note", check=True).stdout.split()


def _count(machine: insula.Machine) -> int:
    return int(machine.exec("cat", "/dev/shm/n", check=True).stdout)


def _goes_on(machine: insula.Machine) -> bool:
    """Whether the counting process, which is no child of this command, still counts."""
    grows = "a=$(cat /dev/shm/n); for i in $(seq 100); do [ $(cat /dev/shm/n) -gt $a ] && exit 0; sleep 0.1; done; exit 1"
    script = f"kill -0 $(cat /dev/shm/pid) || exit 1; {grows}"
    return machine.exec("sh", "-c", script).code == 0


def test_disk_memory_and_processes_of_parent_child_and_grandchild(home: Path, source: str, door: Door, pattern: str) -> None:
    here = insula.connect(home)
    parent = here.get(source)
    _write(parent, "before")
    before = _count(parent)
    (name,) = door.fork(source, pattern=pattern)
    child = here.get(name)
    _write(parent, "later")
    assert _notes(child) == ["before", "before"]
    assert _count(child) >= before
    _write(child, "child")
    (grandname,) = door.fork(name, pattern=pattern.replace("{n}", "g{n}"))
    grandchild = here.get(grandname)
    _write(child, "child-later")
    assert _notes(grandchild) == ["child", "child"]
    assert _notes(child) == ["child-later", "child-later"]
    assert _notes(parent) == ["later", "later"]
    assert all(_goes_on(machine) for machine in (parent, child, grandchild))
    assert len({machine.exec("cat", "/proc/sys/kernel/hostname").stdout for machine in (parent, child, grandchild)}) == 3
    assert [door.show(each)["origin"] for each in (source, name, grandname)] == ["the warm state of tiny", source, name]


def test_a_machine_goes_back_and_forth(home: Path, source: str, door: Door) -> None:
    machine = insula.connect(home).get(source)
    _write(machine, "good")
    before = _count(machine)
    snapshot = door.snapshot(source, description="it was good")
    _write(machine, "bad")
    machine.exec("sh", "-c", "kill $(cat /dev/shm/pid)", check=True)
    door.restore(source, snapshot)
    assert _notes(machine) == ["good", "good"]
    assert _goes_on(machine)
    assert _count(machine) >= before
    door.restore(source, "before-restore", keep=False)
    assert _notes(machine) == ["bad", "bad"]
    assert not _goes_on(machine)
    door.restore(source, snapshot, keep=False)
    assert _goes_on(machine)
    listed = {each["name"]: each for each in door.snapshots(source)}
    assert listed[snapshot]["description"] == "it was good"
    assert listed[snapshot]["state"] == "running"
    assert listed[snapshot]["current"] is True
    assert listed["before-restore"]["parent"] == snapshot
    for each in listed:
        door.delete_snapshot(source, each)
    assert door.snapshots(source) == []
    assert _notes(machine) == ["good", "good"]


def test_many_snapshots_in_a_row_of_a_guest_that_writes(home: Path, source: str) -> None:
    """A disk that is left drained by one snapshot hangs the guest at its next write."""
    machine = insula.connect(home).get(source)
    taken = []
    for number in range(6):
        machine.exec("sh", "-c", f"head -c 500000 /dev/urandom > /root/w{number}; sync", check=True)
        taken.append(machine.snapshot())
    assert [each.status.parent for each in taken[1:]] == [each.name for each in taken[:-1]]
    for each in taken:
        each.delete()
    machine.exec("sh", "-c", "rm /root/w*; sync", check=True)
    _write(machine, "after")
    assert _notes(machine) == ["after", "after"]


def test_a_command_under_way_goes_on_in_the_parent_and_ends_in_the_child(home: Path, source: str, pattern: str) -> None:
    with popen_cli(home, "exec", source, "--", "sh", "-c", "echo $$; exec sleep 1000") as child:
        assert child.stdout is not None
        pid = child.stdout.readline().decode().strip()
        (fork,) = insula.connect(home).get(source).fork(name=pattern)
        gone = f"for i in $(seq 100); do kill -0 {pid} 2>/dev/null || exit 0; sleep 0.1; done; exit 1"
        assert fork.exec("sh", "-c", gone).code == 0
        assert insula.connect(home).get(source).exec("kill", "-0", pid).code == 0
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 128 + signal.SIGTERM


def test_forks_of_a_snapshot_have_names_by_a_pattern(home: Path, source: str, door: Door, pattern: str) -> None:
    machine = insula.connect(home).get(source)
    _write(machine, "kept")
    snapshot = door.snapshot(source, "for-forks")
    try:
        _write(machine, "later")
        names = door.fork(source, snapshot, count=2, pattern=pattern)
        assert names == [pattern.replace("{n}", "1"), pattern.replace("{n}", "2")]
        assert door.fork(source, snapshot, pattern=pattern) == [pattern.replace("{n}", "3")]
    finally:
        door.delete_snapshot(source, snapshot)
    for name in names:
        assert _notes(insula.connect(home).get(name)) == ["kept", "kept"]
        assert door.show(name)["origin"] == f"{source}@{snapshot}"
    with pytest.raises(Refused) as refused:
        door.fork(source, count=2, pattern="onename")
    assert refused.value.code == "bad_name"


def test_a_command_in_each_of_several_forks(home: Path, source: str) -> None:
    before = {machine.name for machine in insula.connect(home).list()}
    words = ("fork", "-q", "-n", "2", "--rm", "--name", "each-{n}", source, "--")
    done = run_cli(home, *words, "sh", "-c", "hostname; printf half; echo wrong >&2; [ $(hostname) = each-1 ] || exit 7")
    assert sorted(done.stdout.splitlines()) == [b"each-1 | each-1", b"each-1 | half", b"each-2 | each-2", b"each-2 | half"]
    assert sorted(done.stderr.splitlines()) == [b"each-1 | wrong", b"each-2 | wrong"]
    assert done.returncode == 7
    assert run_cli(home, *words, "nosuch").returncode == 127
    assert {machine.name for machine in insula.connect(home).list()} == before


def test_one_fork_with_a_command_is_like_run(home: Path, source: str) -> None:
    before = {machine.name for machine in insula.connect(home).list()}
    done = run_cli(home, "fork", "-q", "--rm", "-i", source, "--", "sh", "-c", "cat; exit 9", data=b"hello")
    assert (done.returncode, done.stdout, done.stderr) == (9, b"hello", b"")
    assert {machine.name for machine in insula.connect(home).list()} == before


def test_a_fork_without_a_name_goes_with_its_block(home: Path, source: str) -> None:
    (fork,) = insula.connect(home).get(source).fork()
    with fork:
        assert fork.exec("hostname").stdout.strip() == fork.name
    assert not (home / "machines" / fork.name).exists()


def test_a_suspended_machine_goes_on_where_it_was(home: Path, source: str, door: Door) -> None:
    machine = insula.connect(home).get(source)
    _write(machine, "asleep")
    before = _count(machine)
    door.verb("suspend", source)
    assert door.show(source)["state"] == "suspended"
    with pytest.raises(Refused) as refused:
        door.exec(source, "true")
    assert f"insula start {source}" in (refused.value.hint or "")
    door.verb("start", source)
    assert _notes(machine) == ["asleep", "asleep"]
    assert _count(machine) >= before
    assert _goes_on(machine)


def test_a_clone_has_the_disk_and_an_identity_of_its_own(door: Door, running: str, forget: Callable[[str], None]) -> None:
    door.exec(running, "sh", "-c", "echo kept > /root/note; sync")
    with pytest.raises(Refused) as refused:
        door.clone(running, f"{running}-x")
    assert refused.value.code == "wrong_state"
    door.verb("stop", running)
    for full in (False, True):
        new = f"{running}-{'full' if full else 'linked'}"[:60]
        forget(new)
        door.clone(running, new, full=full)
        shown = door.show(new)
        assert (shown["state"], shown["origin"]) == ("stopped", running)
        assert shown["id"] != door.show(running)["id"]
    door.verb("delete", running)
    door.verb("start", new)
    assert door.exec(new, "cat", "/root/note").stdout == b"kept\n"


def test_what_is_not_there_or_not_possible_is_told(door: Door, source: str) -> None:
    for work, code in (
        (lambda: door.restore(source, "nosuch"), "snapshot_not_found"),
        (lambda: door.delete_snapshot(source, "nosuch"), "snapshot_not_found"),
        (lambda: door.snapshot(source, "no/such"), "bad_name"),
        (lambda: door.fork("nosuch-machine", pattern="x-{n}"), "machine_not_found"),
    ):
        with pytest.raises(Refused) as refused:
            work()
        assert refused.value.code == code
