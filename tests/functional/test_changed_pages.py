"""Forks of forks over the one memory file that all of them map: what changed since is right in each, the file stays as it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import insula
from insula.engines.qemu import changed
from insula.store import names
from insula.store.sums import sparse_hash

pytestmark = pytest.mark.limit(180)

_STEM = "pages"
_COUNTER = "n=0; while :; do n=$((n+1)); echo $n > /dev/shm/n.new; mv /dev/shm/n.new /dev/shm/n; sleep 0.05; done"


@pytest.fixture(scope="module")
def source(home: Path, tiny: str) -> Iterator[insula.Machine]:
    """A machine that went on from the image's warm state, and so maps a memory file, with blobs in memory and a counter."""
    here = insula.connect(home)
    machine = here.run(tiny, name=f"{_STEM}-source", memory="128M", network="none")
    try:
        _do(machine, "mkdir -p /dev/shm; mountpoint -q /dev/shm || mount -t tmpfs none /dev/shm")
        _do(machine, f"setsid sh -c '{_COUNTER}' > /dev/null 2>&1 < /dev/null &")
        _do(machine, "head -c 3000000 /dev/urandom > /dev/shm/blob; head -c 2000000 /dev/urandom > /root/blob")
        yield machine
    finally:
        for each in here.list():
            if each.name.startswith(_STEM):
                here.get(each.name).delete(force=True)


def _do(machine: insula.Machine, script: str) -> str:
    return machine.exec("sh", "-c", script, check=True).stdout


def _sums(machine: insula.Machine) -> str:
    """Of the blobs in memory and on the disk; the latter read anew."""
    return _do(machine, "sync; echo 3 > /proc/sys/vm/drop_caches; md5sum /dev/shm/blob /root/blob")


def _base(home: Path, machine: insula.Machine) -> Path:
    return home / "machines" / machine.name / names.RUN / names.MEMORY


def _hash(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return sparse_hash(descriptor, path.stat().st_size)
    finally:
        os.close(descriptor)


def _fork(machine: insula.Machine, name: str) -> insula.Machine:
    return machine.fork(name=f"{_STEM}-{name}")[0]


def _delete(*machines: insula.Machine) -> None:
    for machine in machines:
        machine.delete(force=True)


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes alone are taken however long it takes to look for them: how busy this computer is does not choose."""
    monkeypatch.setattr(changed, "_PAUSE", 60.0)


@pytest.mark.usefixtures("unhurried")
def test_parent_child_and_grandchild_share_one_file(home: Path, source: insula.Machine) -> None:
    base = _base(home, source)
    content, inode, sums = _hash(base), base.stat().st_ino, _sums(source)
    count = int(_do(source, "cat /dev/shm/n"))
    child = _fork(source, "child")
    _do(source, "head -c 3000000 /dev/urandom > /dev/shm/blob; echo parent > /root/note")
    assert _sums(child) == sums
    _do(child, "echo child > /root/note; echo child > /dev/shm/note")
    grandchild = _fork(child, "grandchild")
    _do(child, "echo later > /root/note; echo later > /dev/shm/note; head -c 2000000 /dev/zero > /dev/shm/blob")
    assert _sums(grandchild) == sums
    assert _do(grandchild, "cat /root/note /dev/shm/note").split() == ["child", "child"]
    assert int(_do(grandchild, "cat /dev/shm/n")) > count
    assert _do(grandchild, "cd /dev/shm; a=$(cat n); while [ $(cat n) = $a ]; do sleep 0.1; done; echo goes on") == "goes on\n"
    assert {_base(home, machine).stat().st_ino for machine in (source, child, grandchild)} == {inode}
    assert _hash(base) == content
    _delete(child, grandchild)


@pytest.mark.usefixtures("unhurried")
def test_memory_given_back_hurts_neither_file_nor_siblings(home: Path, source: insula.Machine) -> None:
    """The guest fills its memory, frees it, drops its caches, discards on its disk."""
    base, sums = _base(home, source), _sums(source)
    content = _hash(base)
    wild, calm = source.fork(2, name=f"{_STEM}-twin-{{n}}")
    assert _base(home, wild).samefile(base)
    assert _base(home, calm).samefile(base)
    _do(wild, "head -c 50000000 /dev/zero | tr '\\0' x > /dev/shm/fill; rm /dev/shm/fill")
    _do(
        wild,
        "rm /root/blob; sync; fstrim / || true; echo 3 > /proc/sys/vm/drop_caches; echo 1 > /proc/sys/vm/compact_memory || true",
    )
    assert _hash(base) == content
    assert _sums(calm) == _sums(source) == sums
    _delete(wild, calm)


@pytest.mark.usefixtures("unhurried")
def test_many_siblings_share_one_file_with_all_changes_in_it(home: Path, source: insula.Machine) -> None:
    """What the origin changed is not each one's own."""
    parent = _fork(source, "grown")
    _do(parent, "head -c 36000000 /dev/urandom > /dev/shm/large; head -c 2000000 /dev/zero > /dev/shm/blob")
    base, sums, large = _base(home, parent), _sums(parent), "md5sum /dev/shm/large"
    content, inode, random = _hash(base), base.stat().st_ino, _do(parent, large)
    taken = parent.snapshot("grown")
    assert taken.status.method == "changed-pages"
    many = taken.fork(3, name=f"{_STEM}-many-{{n}}")
    (shared,) = {_base(home, each).stat().st_ino for each in many}
    assert shared != inode
    assert [_sums(each) for each in many] == [sums] * 3
    _do(many[0], "head -c 36000000 /dev/zero > /dev/shm/large")
    assert {_do(each, large) for each in many[1:]} == {random}
    _delete(many[0], *many[2:])
    child = _fork(many[1], "of-many")
    assert _base(home, child).stat().st_ino == shared
    assert _do(child, large) == random
    assert [each.name for each in (home / "machines" / parent.name / names.SNAPSHOTS).iterdir()] == ["grown"]
    assert _hash(base) == content
    _delete(child, many[1], parent)


def test_what_became_zeros_in_a_child_is_zeros_in_its_child(
    home: Path, source: insula.Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that has changed much is saved whole; that file is what its children share from then on."""
    much = _fork(source, "much")
    _do(much, "head -c 36000000 /dev/urandom > /dev/shm/large")
    assert much.snapshot("all").status.method == "mapped-ram"
    child = much.snapshot("for-a-child").fork(name=f"{_STEM}-changed")[0]
    assert _base(home, child).stat().st_ino != _base(home, much).stat().st_ino
    _do(child, "dd if=/dev/zero of=/dev/shm/large bs=1M count=6 conv=notrunc 2> /dev/null")
    monkeypatch.setattr(changed, "_PAUSE", 60.0)
    before = _do(child, "md5sum /dev/shm/large; head -c 6291456 /dev/shm/large | tr -d '\\0' | wc -c").split()
    taken = child.snapshot("few")
    assert taken.status.method == "changed-pages"
    assert taken.status.size < _base(home, child).stat().st_blocks * 512
    (grandchild,) = taken.fork(name=f"{_STEM}-zeros")
    assert _base(home, grandchild).stat().st_ino == _base(home, child).stat().st_ino
    after = _do(grandchild, "md5sum /dev/shm/large; head -c 6291456 /dev/shm/large | tr -d '\\0' | wc -c").split()
    assert after == before
    assert after[2] == "0"
    _delete(grandchild, child, much)


@pytest.mark.usefixtures("unhurried")
def test_a_snapshot_of_changes_can_be_restored_when_all_else_is_gone(home: Path, source: insula.Machine) -> None:
    sums = _sums(source)
    child = _fork(source, "alone")
    _do(child, "echo kept > /dev/shm/note")
    taken = child.snapshot("kept")
    assert taken.status.method == "changed-pages"
    _do(child, "echo lost > /dev/shm/note; rm /root/blob")
    child.stop(force=True)
    assert not _base(home, child).exists()
    taken.restore(keep=False)
    assert _do(child, "cat /dev/shm/note") == "kept\n"
    assert _sums(child) == sums
    _delete(child)


@pytest.mark.usefixtures("unhurried")
def test_forks_of_a_paused_fork(home: Path, source: insula.Machine) -> None:
    sums = _sums(source)
    child = _fork(source, "paused").pause()
    grandchildren = [_fork(child, f"of-paused-{number}") for number in range(2)]
    assert child.state == "paused"
    assert [_sums(machine) for machine in grandchildren] == [sums] * 2
    assert _sums(child.resume()) == sums
    _delete(child, *grandchildren)


@pytest.mark.usefixtures("unhurried")
def test_a_suspended_fork_wakes_over_the_same_file(home: Path, source: insula.Machine) -> None:
    sums, inode = _sums(source), _base(home, source).stat().st_ino
    child = _fork(source, "sleeps").suspend()
    assert (home / "machines" / child.name / names.SUSPENDED / names.MEMORY).stat().st_ino == inode
    assert _sums(child.start()) == sums
    assert _base(home, child).stat().st_ino == inode
    _delete(child)
