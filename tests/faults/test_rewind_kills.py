"""`kill -9` of a command, of QEMU or of a keeper at every step of what rewinds and multiplies: nothing that was kept is lost, no
guest is left standing, nothing half made stays, and the next verb works."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

import insula
from insula.errors import NotFound
from insula.store import names
from insula.store.machines import read_machine
from tests.faults.rewound import left_over, run_next, settled, strike, victim
from tests.framework.doors import run_cli
from tests.framework.points import NEVER, Points

pytestmark = [pytest.mark.guest, pytest.mark.limit(120)]

_SHAPE = {"memory": "128M", "network": "none"}
_PATIENCE = 20.0  # seconds for what ends or goes on by itself
_DEEPEST = 10  # layers; of more than some, several are merged behind, and that is a verb of its own
# Each verb, and the state it takes its machine from.
LIVE = ("snapshot", "restore", "restore-discard", "fork", "fork-running", "fork-two", "suspend")
VERBS = dict.fromkeys(LIVE, "running") | {"wake": "suspended"}


@pytest.fixture(scope="module")
def parent(home: Path, tiny: str) -> Iterator[str]:
    """A machine with the snapshot `base`, taken when its disk said `base` and its memory, too."""
    name = "rewound"
    machine = insula.connect(home).run(tiny, name=name, memory="128M", network="none")
    _note(home, name, "base")
    machine.snapshot("base")
    yield name
    _remove(home, name)


def _note(home: Path, name: str, text: str) -> None:
    """Have ``text`` on the guest's disk, flushed, and in its memory."""
    script = f"echo {text} >> /root/note; sync; echo {text} > /run/memo"
    insula.connect(home).get(name).exec("sh", "-c", script, check=True)


def _children(home: Path, name: str) -> list[insula.Machine]:
    return [
        insula.connect(home).get(status.name) for status in insula.connect(home).list() if status.name.startswith(f"{name}-x")
    ]


def _remove(home: Path, name: str) -> None:
    for machine in _children(home, name):
        machine.delete(force=True)
    with contextlib.suppress(NotFound):
        insula.connect(home).get(name).delete(force=True)


def _prepare(home: Path, name: str, verb: str, text: str) -> None:
    """The machine runs, or is suspended, and holds ``text``; there are no others."""
    machine = insula.connect(home).get(name)
    for child in _children(home, name):
        child.delete(force=True)
    for snapshot in machine.snapshots():
        if snapshot.name == "victim":
            snapshot.delete()
    if machine.state == "stopped" or _depth(home, name) > _DEEPEST:
        _snapshot(home, name, "base").restore(keep=False)
    elif machine.state != "running":
        machine.start()
    _note(home, name, text)
    if VERBS[verb] == "suspended":
        machine.suspend()


def _depth(home: Path, name: str) -> int:
    return len(read_machine(home / "machines" / name).disks[0].layers)


def _snapshot(home: Path, name: str, snapshot: str) -> insula.Snapshot:
    return next(one for one in insula.connect(home).get(name).snapshots() if one.name == snapshot)


def _check(home: Path, name: str, text: str) -> None:
    """After any death: see the module."""
    listed = insula.connect(home).list()
    assert [status.problem for status in listed if status.problem] == []
    machine = insula.connect(home).get(name)
    run_next(home)  # may have to finish what its keeper could not be told in time
    for each in (machine, *_children(home, name)):
        run_cli(home, "snapshot", "delete", "--json", f"{each.name}@nothing")  # a verb that finishes the dead one's work
        state = settled(home, each.name)
        assert state in ("running", "stopped", "suspended")
    assert left_over(home) == []
    assert "base" in [snapshot.name for snapshot in machine.snapshots() if snapshot.status.state == "running"]
    if machine.state == "suspended":
        machine.start()
    if machine.state == "running":
        assert _said(home, name, "cat", "/run/memo") in ([text], ["base"])
    for child in _children(home, name):
        if child.state == "running":
            assert _said(home, child.name, "hostname") == [child.name]
            assert _said(home, child.name, "head", "-n1", "/root/note") == ["base"]


def _said(home: Path, name: str, *words: str) -> list[str]:
    """What a command in the guest prints; its agent may be just about to answer again."""
    done = run_cli(home, "exec", "--wait", f"{_PATIENCE:g}", name, "--", *words)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


def _check_same_life(home: Path, name: str, text: str) -> None:
    """What only takes a state never ends its guest: it ran on, or is suspended with all it had."""
    assert _said(home, name, "cat", "/run/memo") == [text]
    assert text in _said(home, name, "cat", "/root/note")


def _strike(home: Path, parent: str, verb: str, step: str) -> int:
    """One round; how many steps came."""
    text = f"{verb}-{step}"
    _prepare(home, parent, verb, text)

    def check(_: int) -> None:
        _check(home, parent, text)
        if step[0] not in "qQkK" and not verb.startswith("restore"):
            _check_same_life(home, parent, text)

    return strike(home, step, verb, parent, check)


@pytest.mark.parametrize("verb", VERBS)
def test_a_command_killed_at_any_step_leaves_all_in_order(home: Path, parent: str, points: Points, verb: str) -> None:
    points.each(lambda step: _strike(home, parent, verb, f"{step}"), rounds=2, least=1)


@pytest.mark.full
@pytest.mark.sampled(5)
@pytest.mark.limit(1800)
@pytest.mark.parametrize("verb", VERBS)
def test_a_command_killed_before_any_change_it_makes_leaves_all_in_order(
    home: Path, parent: str, points: Points, verb: str
) -> None:
    points.each(lambda change: _strike(home, parent, verb, f"c{change}"), rounds=5, least=40, kind=f"rewind {verb}")


@pytest.mark.full
@pytest.mark.sampled(5)
@pytest.mark.limit(1800)
@pytest.mark.parametrize("verb", VERBS)
def test_a_command_interrupted_before_any_change_it_makes_leaves_all_in_order(
    home: Path, parent: str, points: Points, verb: str
) -> None:
    points.each(lambda change: _strike(home, parent, verb, f"ic{change}"), rounds=2, least=40, kind=f"rewind {verb}")


@pytest.mark.full
def test_a_fork_interrupted_while_its_parent_is_handed_a_head_leaves_it_usable(home: Path, parent: str) -> None:
    """Before QEMU is handed the file of a new head (QMP's add-fd), between that and its opening it, and before the overlay."""
    _prepare(home, parent, "fork-running", "handed")
    _, changes, _ = victim(home, f"c{NEVER}", "fork-running", parent)
    opened = next(
        number
        for number, (one, then) in enumerate(itertools.pairwise(changes), 1)
        if one.startswith("open") and f"/{names.DISKS}/" in one and then.startswith("socket.sendmsg")
    )
    for change in (opened + 1, opened + 2, opened + 3):
        assert _strike(home, parent, "fork-running", f"ic{change}") == change
        assert victim(home, NEVER, "fork-running", parent)[0] == 0, "the next fork is made"
        assert _said(home, f"{parent}-x1", "cat", "/run/memo") == [f"fork-running-ic{change}"]


@pytest.mark.parametrize(
    ("verb", "letter"),
    [
        ("snapshot", "q"),
        ("restore", "Q"),
        pytest.param("suspend", "k", marks=pytest.mark.full),
        pytest.param("fork-running", "q", marks=pytest.mark.full),
    ],
)
def test_a_qemu_killed_at_any_step_is_told(home: Path, parent: str, points: Points, verb: str, letter: str) -> None:
    points.each(lambda step: _strike(home, parent, verb, f"{letter}{step}"), rounds=2, least=1)


@pytest.mark.full
@pytest.mark.sampled(8)
@pytest.mark.limit(1800)
@pytest.mark.parametrize("letter", ["q", "Q", "k", "K"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_qemu_or_keeper_killed_before_a_change_is_told(home: Path, parent: str, points: Points, verb: str, letter: str) -> None:
    points.each(lambda change: _strike(home, parent, verb, f"{letter}c{change}"), rounds=2, least=40, kind=f"rewind {verb}")


def test_what_was_flushed_before_a_death_is_there_at_the_next_boot(home: Path, parent: str) -> None:
    """Of all the lives above: nothing that was flushed in the last one is lost when the disks are all there is."""
    _prepare(home, parent, "snapshot", "flushed")
    assert victim(home, "q3", "snapshot", parent)[0] in (0, 3)
    machine = insula.connect(home).get(parent)
    run_next(home)
    machine.start()
    assert machine.exec("tail", "-n1", "/root/note", check=True).stdout == "flushed\n"
    assert machine.exec("head", "-n1", "/root/note", check=True).stdout == "base\n"
