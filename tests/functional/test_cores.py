"""CPUs that a machine has for itself: nobody else runs there while it does, whoever comes, goes and is restored."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import insula
from insula.errors import HostLacks, UsageError
from insula.host import cgroups
from insula.host.cgroup_trees import usable_trees
from insula.host.scheduling import online_cpus
from insula.model.limits import format_pin
from insula.store import names
from insula.store.names import Home, home_key

_CPUS = sorted(online_cpus())
_OWN, _LEFT = _CPUS[-1], _CPUS[:-1]


@pytest.fixture(autouse=True)
def able() -> None:
    if not any("cpuset" in tree.controllers for tree in usable_trees()) or len(_CPUS) < 2:
        pytest.skip("this host has no cpuset that we may use, or one CPU")


@pytest.fixture
def made(home: Path, tiny: str, name: str) -> Iterator[Callable[..., insula.Machine]]:
    connection = insula.connect(home)

    def make(which: str, **limits: str) -> insula.Machine:
        return connection.run(tiny, name=f"{name}-{which}", memory="128M", network="none", limits=limits)

    yield make
    for status in connection.list():
        if status.name.startswith(name):
            connection.get(status.name).delete(force=True)


def _cpus(machine: insula.Machine) -> set[int]:
    """Where its QEMU may run, as the kernel says."""
    pid = next(pid for word, pid in machine.show().process.items() if word.startswith("qemu"))
    return os.sched_getaffinity(pid)


def test_its_cpus_are_its_own_while_it_runs(made: Callable[..., insula.Machine]) -> None:
    other = made("other")
    assert _cpus(other) == {*_CPUS}
    alone = made("alone", isolate_cores=str(_OWN))
    assert _cpus(alone) == {_OWN}
    assert _cpus(other) == {*_LEFT}
    late = made("late")
    assert _cpus(late) == {*_LEFT}
    for refused in (
        lambda: late.limit(pin=str(_OWN)),
        lambda: late.limit(isolate_cores=str(_OWN)),
        lambda: made("x", pin=str(_OWN)),
    ):
        with pytest.raises(HostLacks) as error:
            refused()
        assert error.value.code == "cores_taken"
        assert re.search(rf"-alone' has CPU {_OWN} ", error.value.message)
    assert _cpus(late) == {*_LEFT}
    child = alone.fork(1)[0]
    assert _cpus(child) == {*_LEFT}
    child.delete(force=True)
    snapshot = alone.snapshot("now")
    snapshot.restore(keep=False)
    assert _cpus(alone) == {_OWN}
    assert _cpus(other) == {*_LEFT}
    alone.stop(force=True)
    assert _cpus(other) == _cpus(late) == {*_CPUS}
    alone.start()
    assert _cpus(other) == {*_LEFT}
    alone.limit(isolate_cores="none")
    assert _cpus(alone) == _cpus(other) == {*_CPUS}


def test_what_cannot_be_its_own_is_refused_and_changes_nothing(made: Callable[..., insula.Machine]) -> None:
    machine, pinned = made("web"), made("pinned", pin=str(_OWN))
    with pytest.raises(UsageError, match="left for others"):
        machine.limit(isolate_cores=",".join(map(str, _CPUS)))
    with pytest.raises(UsageError, match="cannot be pinned"):
        machine.limit(isolate_cores=str(_OWN), pin=str(_OWN))
    with pytest.raises(HostLacks, match="runs pinned"):
        machine.limit(isolate_cores=str(_OWN))
    assert _cpus(machine) == {*_CPUS}
    assert _cpus(pinned) == {_OWN}
    pinned.limit(pin="none")
    machine.limit(isolate_cores=str(_OWN))
    assert _cpus(pinned) == {*_LEFT}


def test_what_a_dead_command_kept_is_given_back(home: Path, made: Callable[..., insula.Machine]) -> None:
    machine, note = made("web"), Home(home).host / names.CORES / "11111111-2222-4333-8444-555555555555"
    note.parent.mkdir(exist_ok=True)
    note.write_text(f"{_OWN}\n")  # of a machine that has no group: it counts for nobody
    assert _cpus(made("late")) == {*_CPUS}
    machine.limit(cpu_shares=512)
    assert not note.exists()


def test_who_is_being_made_and_has_no_name_yet_makes_room_too(home: Path, made: Callable[..., insula.Machine]) -> None:
    """By a group of a machine that no record tells of; one that is held to other CPUs than all share stays there."""
    machine, trees = made("web"), usable_trees()
    parent, free, held = home_key(Home(home).root), "unborn.1", "unborn.2"
    with cgroups.made(parent, free, trees) as one, cgroups.made(parent, held, trees) as other:
        for group, cpus in ((one, _CPUS), (other, _LEFT[:1])):
            group.write("cpuset", "cpuset.cpus", format_pin(tuple(cpus)))
        machine.limit(isolate_cores=str(_OWN))
        assert (one.read("cpuset", "cpuset.cpus") or "").strip() == format_pin(tuple(_LEFT))
        assert (other.read("cpuset", "cpuset.cpus") or "").strip() == format_pin(tuple(_LEFT[:1]))
        machine.limit(isolate_cores="none")
        assert (one.read("cpuset", "cpuset.cpus") or "").strip() == format_pin(tuple(_CPUS))
        for group in (one, other):
            cgroups.remove(group)
