"""`kill -9` of a merge, of QEMU or of a keeper while layers of a running machine become one: before QEMU takes the merged layer
in, between that and the record, and after. The guest goes on, or boots again, with all it wrote; the next merge succeeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import insula
from insula.store.machines import read_machine
from tests.faults.rewound import left_over, run_next, settled, strike, victim
from tests.framework.doors import run_cli
from tests.framework.points import NEVER, Points

pytestmark = [pytest.mark.guest, pytest.mark.limit(120)]

_NAME = "merging"
_BOUND = 3  # layers; more are merged
_LAYERS = 6


@pytest.fixture(scope="module")
def machine(home: Path, tiny: str) -> Iterator[insula.Machine]:
    machine = insula.connect(home).run(tiny, name=_NAME, memory="128M", network="none")
    yield machine
    machine.delete(force=True)


def _depth(home: Path) -> int:
    return len(read_machine(home / "machines" / _NAME).disks[0].layers)


def _prepare(home: Path, machine: insula.Machine) -> str:
    """The machine runs with too many layers, each of which holds something; the sums of all it wrote."""
    if machine.state != "running":
        machine.start()
    for snapshot in machine.snapshots():
        snapshot.delete()
    while (depth := _depth(home)) < _LAYERS:
        machine.exec("sh", "-c", f"head -c 200000 /dev/urandom > /root/n{depth}; sync", check=True)
        snapshot = machine.snapshot(f"s{depth}")
        if depth != 2:  # of that the layers stay
            snapshot.delete()
    return _sums(home)


def _sums(home: Path) -> str:
    """The sums of all the guest wrote, as it finds it on its disk."""
    script = "sync; echo 3 > /proc/sys/vm/drop_caches; md5sum /root/n*"
    done = run_cli(home, "exec", "--wait", "20", _NAME, "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def _told(home: Path) -> dict[str, str]:
    return {"VICTIM_ID": read_machine(home / "machines" / _NAME).id, "VICTIM_BOUND": str(_BOUND)}


def _check(home: Path, machine: insula.Machine, sums: str) -> None:
    """After any death: see the module."""
    run_next(home)
    run_cli(home, "snapshot", "delete", "--json", f"{_NAME}@nothing")  # a verb that finishes the dead one's work
    state = settled(home, _NAME)
    assert state in ("running", "stopped")
    assert left_over(home) == []
    if state == "stopped":
        machine.start()
    assert _sums(home) == sums
    assert all(snapshot.status.size > 0 for snapshot in machine.snapshots())


def _strike(home: Path, machine: insula.Machine, step: str) -> int:
    """One round; how many changes came."""
    sums = _prepare(home, machine)
    return strike(home, step, "merge", _NAME, lambda _: _check(home, machine, sums), "busy", **_told(home))


@pytest.fixture(scope="module")
def changes(home: Path, machine: insula.Machine) -> list[str]:
    """Those a merge makes that nobody disturbs."""
    sums = _prepare(home, machine)
    status, changes, _ = victim(home, f"c{NEVER}", "merge", _NAME, **_told(home))
    assert (status, _depth(home)) == (0, _BOUND)
    _check(home, machine, sums)
    return changes


# Right before the first request to QEMU, among those to it, before the record is written, before the journal is cleared.
_MOMENTS: dict[str, Callable[[list[str]], int]] = {
    "before QEMU has it": lambda changes: _first(changes, "qmp.sock"),
    "while QEMU takes it": lambda changes: _first(changes, "qmp.sock") + sum("qmp.sock" in one for one in changes) // 2,
    "before the record names it": lambda changes: _first(changes, ".machine.json"),
    "after": lambda changes: _first(changes, "/journal.json"),
}


def _first(changes: list[str], words: str) -> int:
    return next(number for number, change in enumerate(changes, 1) if words in change)


@pytest.mark.parametrize("moment", _MOMENTS)
def test_a_merge_killed_leaves_all_in_order(home: Path, machine: insula.Machine, changes: list[str], moment: str) -> None:
    change = _MOMENTS[moment](changes)
    assert _strike(home, machine, f"c{change}") >= change


@pytest.mark.parametrize(
    ("letter", "moment"),
    [
        ("q", "before the record names it"),
        pytest.param("q", "while QEMU takes it", marks=pytest.mark.full),
        pytest.param("k", "while QEMU takes it", marks=pytest.mark.full),
    ],
)
def test_a_qemu_or_keeper_killed_is_no_loss(
    home: Path, machine: insula.Machine, changes: list[str], letter: str, moment: str
) -> None:
    change = _MOMENTS[moment](changes)
    assert _strike(home, machine, f"{letter}c{change}") >= change


@pytest.mark.full
@pytest.mark.limit(1800)
@pytest.mark.parametrize("letter", ["", "q", "k"])
def test_a_death_before_any_change_is_no_loss(home: Path, machine: insula.Machine, points: Points, letter: str) -> None:
    points.each(lambda change: _strike(home, machine, f"{letter}c{change}"), rounds=8, least=20, kind="merge")


@pytest.mark.full
def test_layers_above_merged_ones_are_merged_too(home: Path, tiny: str, name: str) -> None:
    """In one life of a machine, whatever snapshots lie between: what QEMU has open is found again each time."""
    machine = insula.connect(home).run(tiny, name=name, memory="128M", network="none")
    folder, bound, number = home / "machines" / name, 10, 0

    def layers() -> list[str]:
        return read_machine(folder).disks[0].layers

    def deepen(depth: int, *, keep: bool = False) -> None:
        nonlocal number
        while len(layers()) < depth:
            number += 1
            machine.exec("sh", "-c", f"echo {number} > /root/n{number}; sync", check=True)
            snapshot = machine.snapshot(f"s{number}")
            if not keep:
                snapshot.delete()

    def merge() -> list[str]:
        before = layers()
        told = {"VICTIM_ID": read_machine(folder).id, "VICTIM_BOUND": str(bound)}
        assert victim(home, f"c{NEVER}", "merge", name, **told)[::2] == (0, "")
        _check_all_is_there()
        return before

    def _check_all_is_there() -> None:
        script = "echo 3 > /proc/sys/vm/drop_caches; cat $(ls /root/n* | sort -V)"
        assert machine.exec("sh", "-c", script, check=True).stdout.split() == [str(n) for n in range(1, number + 1)]
        assert left_over(home) == []

    deepen(3, keep=True)
    deepen(11)
    before = merge()
    assert [before.index(layer) for layer in layers() if layer in before] == [0, 1, 2, 10]  # 3 to 9 are one
    deepen(7, keep=True)  # upon the merged one
    deepen(11)
    before = merge()
    assert [before.index(layer) for layer in layers() if layer in before] == [0, 1, 2, 3, 4, 5, 6, 10]  # 7 to 9 are one
    deepen(12)
    for snapshot in machine.snapshots():
        snapshot.delete()
    merge()
    assert len(layers()) == 3  # the merged ones became one with the others
    with machine.fork()[0] as child:
        assert child.exec("cat", f"/root/n{number}", check=True).stdout == f"{number}\n"
    machine.stop(force=True)
    machine.start()
    _check_all_is_there()
