"""CPUs and memory of real guests, more and fewer while they run, and what becomes of them in snapshots, forks and a suspend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import insula
from insula.errors import UsageError
from insula.model.shape import PIECE
from insula.model.units import MIB
from insula.store import names
from insula.store.machines import read_machine
from tests.framework.doors import run_cli

pytestmark = pytest.mark.limit(240)

_STEM = "shape"
_MEMORY = 128 * MIB
# Of that much a guest without the plugged memory has no room.
_BLOB = 150 * MIB


@pytest.fixture
def booted(home: Path, tiny: str) -> Iterator[insula.Machine]:
    """A machine that booted with two CPUs, and so has a balloon and memory of its own."""
    here = insula.connect(home)
    machine = here.create(tiny, name=f"{_STEM}-booted", cpus=2, memory="128M", network="none")
    try:
        yield machine.start()
    finally:
        for each in here.list():
            if each.name.startswith(_STEM):
                here.get(each.name).delete(force=True)


def _do(machine: insula.Machine, script: str) -> str:
    return machine.exec("sh", "-c", script, check=True).stdout.strip()


def _cpus(machine: insula.Machine) -> int:
    return int(_do(machine, "grep -c ^processor /proc/cpuinfo"))


def _memory(machine: insula.Machine) -> int:
    """What the guest's kernel says that it has, in MiB."""
    return int(_do(machine, "sed -n 's/^MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo")) // 1024


def _fill(machine: insula.Machine) -> str:
    """Put a blob into the guest's memory, more than it booted with, and give its sum."""
    _do(machine, "mkdir -p /dev/shm; mountpoint -q /dev/shm || mount -t tmpfs -o size=512m none /dev/shm")
    return _do(machine, f"{_write(_BLOB, 'blob')}; {_SUM}")


def _write(size: int, name: str) -> str:
    """Numbers in front of a piece of noise, again and again: no two pieces are the same, and none takes an emulated guest
    long."""
    piece = "head -c 1000000 /dev/urandom > /dev/shm/piece"
    return f"{piece}; n=0; while [ $n -lt {size // 1000000} ]; do n=$((n+1)); echo $n; cat /dev/shm/piece; done > /dev/shm/{name}"


_SUM = "md5sum < /dev/shm/blob"


def _reads(home: Path, name: str) -> tuple[int, int]:
    """What the record says that the machine boots with next time."""
    spec = read_machine(home / "machines" / name).spec
    return spec.cpus, spec.memory


def test_a_guest_gets_and_gives_up_cpus_and_memory(home: Path, booted: insula.Machine) -> None:
    before = _memory(booted)
    assert _cpus(booted) == 2

    assert booted.resize(cpus=1).note is None
    assert (_cpus(booted), booted.show().cpus) == (1, 1)
    assert booted.resize(cpus=2).note is None
    assert (_cpus(booted), booted.show().cpus) == (2, 2)

    told = booted.resize(memory="256M")
    assert (told.note, told.memory, told.next_start) == (None, 256 * MIB, None)
    assert _memory(booted) - before > 100
    total = _fill(booted)
    assert booted.exec("sh", "-c", _SUM).stdout.strip() == total
    _do(booted, "rm /dev/shm/blob")
    told = booted.resize(memory="128M")
    assert (told.note, told.memory) == (None, 128 * MIB)
    assert _memory(booted) == before
    assert read_machine(home / "machines" / booted.name).shape is None

    # Less than it booted with: what the balloon takes it gives back.
    told = booted.resize(memory="100M")
    assert (told.note, told.memory) == (None, 100 * MIB)
    assert _do(booted, "echo goes on") == "goes on"
    assert booted.resize(memory="128M").memory == 128 * MIB


def test_what_cannot_be_now_comes_with_the_next_start(home: Path, booted: insula.Machine) -> None:
    with pytest.raises(UsageError) as raised:
        booted.resize(cpus=4, memory=_MEMORY + 3 * MIB)
    assert raised.value.code == "bad_size"
    assert f"{PIECE // MIB} MiB" in raised.value.message
    with pytest.raises(UsageError, match="0 CPUs is not possible"):
        booted.resize(cpus=0)
    with pytest.raises(UsageError, match="of memory is too little"):
        booted.resize(memory=0)
    assert _reads(home, booted.name) == (2, _MEMORY)

    told = booted.resize(cpus=30)
    assert (told.cpus, told.next_start) == (2, "30 CPUs")
    assert "next start" in (told.note or "")
    done = run_cli(home, "limit", "--cpus", "1", "--memory", "160M", booted.name)
    assert done.returncode == 2
    assert b"pieces of 128 MiB" in done.stderr
    booted.stop(force=True)
    assert booted.resize(memory=_MEMORY + 3 * MIB).note is None
    assert _reads(home, booted.name) == (30, _MEMORY + 3 * MIB)
    assert booted.resize(cpus=1).note is None
    booted.start()
    assert (_cpus(booted), booted.show().memory) == (1, _MEMORY + 3 * MIB)


def test_what_was_plugged_in_belongs_to_every_state(home: Path, booted: insula.Machine) -> None:
    booted.resize(cpus=1, memory="256M")
    total = _fill(booted)
    kept = booted.snapshot("grown")
    assert (kept.show().cpus, kept.show().memory) == (1, 256 * MIB)

    child = kept.fork(name=f"{_STEM}-child")[0]
    assert (_do(child, _SUM), _cpus(child), child.show().memory) == (total, 1, 256 * MIB)
    # Memory of its own for a fork, whose other memory is an image that all map: it goes to no file that others read.
    image = home / "machines" / child.name / names.RUN / names.MEMORY
    written = image.stat().st_mtime_ns
    child.resize(cpus=2, memory="384M")
    _do(child, _write(100 * MIB, "more"))
    more = _do(child, "md5sum < /dev/shm/more")
    grandchild = child.fork(name=f"{_STEM}-grandchild")[0]
    assert (_do(grandchild, _SUM), _do(grandchild, "md5sum < /dev/shm/more"), _cpus(grandchild)) == (total, more, 2)
    assert image.stat().st_mtime_ns == written
    grandchild.delete(force=True)
    child.delete(force=True)

    booted.suspend()
    assert booted.show().memory == 256 * MIB
    booted.start()
    assert _do(booted, _SUM) == total
    booted.resize(memory="384M")
    _do(booted, "rm /dev/shm/blob")
    kept.restore()
    assert (_do(booted, _SUM), booted.show().memory, _cpus(booted)) == (total, 256 * MIB, 1)
    booted.stop(force=True)
    assert (booted.show().memory, booted.show().cpus) == (256 * MIB, 1)
    booted.start()
    assert (_memory(booted) > 200, _cpus(booted)) == (True, 1)
