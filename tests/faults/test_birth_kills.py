"""`kill -9` of a command, of QEMU or of a keeper at every step of what makes machines out of others: clones, warm states, what is
run from those, and spares, before and while they are taken. What was is unharmed, what is new is whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import insula
from insula.client.local import LocalClient
from insula.disks.overlays import create_overlay
from insula.errors import NotFound
from insula.model.requests import SetSpares
from insula.store.machines import read_machine
from tests.faults.rewound import left_over, run_next, settled, strike, victim
from tests.framework.doors import run_cli
from tests.framework.points import Points

pytestmark = [pytest.mark.guest, pytest.mark.limit(120)]

_PATIENCE = 20.0  # seconds for what ends or goes on by itself
_DEEPEST = 8  # layers: each clone that is killed leaves one more, and makes one more change for it
# Each verb, and who is killed under it beside the command itself: no guest runs while a machine is cloned.
VERBS = {"clone": "", "clone-full": "", "warm": "QK", "run": "QK", "run-ephemeral": "QK", "spare": "QK", "fork": "QK"}
_FULL = pytest.mark.full


@pytest.fixture(scope="module")
def parent(home: Path, tiny: str) -> Iterator[str]:
    """A stopped machine with the snapshot `base`, taken while it ran and its disk said `base`; later that said `later`, too."""
    name = "bearing"
    machine = insula.connect(home).run(tiny, name=name, memory="128M", network="none")
    machine.exec("sh", "-c", "echo base >> /root/note; sync", check=True)
    machine.snapshot("base")
    machine.exec("sh", "-c", "echo later >> /root/note; sync", check=True)
    machine.stop(force=True)
    machine.snapshot("off")
    yield name
    _remove_children(home, name)
    machine.delete(force=True)


@pytest.fixture(scope="module")
def content(home: Path, parent: str) -> list[str]:
    """What is on the parent's disk."""
    return _content(home / "machines" / parent)


def _content(folder: Path) -> list[str]:
    """The sums of all files of a disk, bottom to top, but of those that hold nothing: a disk is the same as long as these are."""
    disk = read_machine(folder).disks[0]
    sums = [hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in (*disk.layers, disk.head)]
    with tempfile.TemporaryDirectory() as scratch:
        create_overlay(Path(scratch) / "empty", disk.size)
        empty = hashlib.sha256((Path(scratch) / "empty").read_bytes()).hexdigest()
    return [one for one in sums if one != empty]


def _children(home: Path, name: str) -> list[str]:
    return [status.name for status in insula.connect(home).list() if status.name.startswith(f"{name}-x")]


def _remove_children(home: Path, name: str) -> None:
    for child in _children(home, name):
        with contextlib.suppress(NotFound):
            insula.connect(home).get(child).delete(force=True)


def _spares(home: Path, parent: str, count: int) -> None:
    LocalClient(home).do(SetSpares(origin=f"{parent}@base", count=count))


def _check(home: Path, parent: str, content: list[str], verb: str) -> None:
    """After any death: see the module."""
    _spares(home, parent, 0)  # waits for those who make some behind, and sweeps
    run_next(home)
    for name in (parent, *_children(home, parent)):
        run_cli(home, "snapshot", "delete", "--json", f"{name}@nothing")  # a verb that finishes the dead one's work
    for child in _children(home, parent):
        state = settled(home, child)
        assert state in ("running", "stopped", None)
        if state == "running":
            _check_guest(home, child, verb)
        elif state == "stopped" and verb.startswith("clone"):
            assert _content(home / "machines" / child) == content
    assert [status.problem for status in insula.connect(home).list() if status.problem] == []
    assert left_over(home) == []
    assert [origin for origin in (home / "spares").iterdir() if len(os.listdir(origin)) > 1] == []
    assert _content(home / "machines" / parent) == content
    if verb in ("warm", "run", "run-ephemeral"):
        done = run_cli(home, "run", "--memory", "128M", "--network", "none", "tiny", "--", "hostname")
        assert done.returncode == 0, done.stderr.decode()


def _check_guest(home: Path, child: str, verb: str) -> None:
    done = run_cli(home, "exec", "--wait", f"{_PATIENCE:g}", child, "--", "hostname")
    assert (done.returncode, done.stdout.decode()) == (0, f"{child}\n"), done.stderr.decode()
    if verb == "fork":
        assert run_cli(home, "exec", child, "--", "cat", "/root/note").stdout == b"base\n"


def _prepare(home: Path, parent: str, verb: str) -> None:
    _remove_children(home, parent)
    if len(read_machine(home / "machines" / parent).disks[0].layers) > _DEEPEST:
        insula.Snapshot(insula.connect(home).get(parent), "off").restore(keep=False)
    _spares(home, parent, 1 if verb == "fork" else 0)


def _named(parent: str, verb: str) -> str:
    """Whom the verb is told to make, or to make others of."""
    return f"{parent}-x1" if verb.startswith("run") else parent


def _strike(home: Path, parent: str, content: list[str], verb: str, step: str) -> int:
    """One round; how many steps came."""
    _prepare(home, parent, verb)

    def check(status: int) -> None:
        _check(home, parent, content, verb)
        if status == -signal.SIGKILL and verb == "run-ephemeral":
            assert _children(home, parent) == []

    return strike(home, step, verb, _named(parent, verb), check, "killed")  # so may a boot end


def _number(step: str) -> int:
    return int(step.lstrip("QKc"))


# Enough to see that each of them is looked at; the long tests try more.
_FEW_STEPS = [("clone", "2"), ("clone-full", "1"), ("warm", "3"), ("run", "2"), ("spare", "c25"), ("fork", "c10")]


@pytest.mark.parametrize(("verb", "step"), _FEW_STEPS)
def test_a_command_killed_leaves_all_in_order(home: Path, parent: str, content: list[str], verb: str, step: str) -> None:
    assert _strike(home, parent, content, verb, step) >= _number(step), "it was done before that step came"


@_FULL
@pytest.mark.limit(600)
@pytest.mark.parametrize("verb", VERBS)
def test_a_command_killed_at_any_step_leaves_all_in_order(
    home: Path, parent: str, content: list[str], points: Points, verb: str
) -> None:
    points.each(lambda step: _strike(home, parent, content, verb, f"{step}"), rounds=2, least=1)


@_FULL
@pytest.mark.sampled(5)
@pytest.mark.limit(1800)
@pytest.mark.parametrize("verb", VERBS)
def test_a_command_killed_before_any_change_it_makes_leaves_all_in_order(
    home: Path, parent: str, content: list[str], points: Points, verb: str
) -> None:
    points.each(lambda change: _strike(home, parent, content, verb, f"c{change}"), rounds=4, least=20, kind=f"birth {verb}")


@pytest.mark.parametrize(("verb", "step"), [("run", "Q2"), ("fork", "Q1"), ("fork", "K1")])
def test_a_qemu_or_keeper_killed_is_told(home: Path, parent: str, content: list[str], verb: str, step: str) -> None:
    assert _strike(home, parent, content, verb, step) >= _number(step), "it was done before that step came"


@_FULL
@pytest.mark.sampled(5)
@pytest.mark.limit(1800)
@pytest.mark.parametrize(("verb", "letter"), [(verb, letter) for verb, letters in VERBS.items() for letter in letters])
def test_a_qemu_or_keeper_killed_before_a_change_is_told(
    home: Path, parent: str, content: list[str], points: Points, verb: str, letter: str
) -> None:
    points.each(
        lambda change: _strike(home, parent, content, verb, f"{letter}c{change}"), rounds=3, least=20, kind=f"birth {verb}"
    )


@pytest.mark.parametrize("letter", ["Q", pytest.param("K", marks=_FULL)])
def test_a_spare_that_died_before_it_was_taken_is_not_missed(home: Path, parent: str, content: list[str], letter: str) -> None:
    """It is dead before the command does anything: another is made, and the command is as good as without spares."""
    _prepare(home, parent, "fork")
    status, _, code = victim(home, f"{letter}c1", "fork", parent)
    assert (status, code) == (0, "")
    children = _children(home, parent)
    assert len(children) == 1
    _check_guest(home, children[0], "fork")
    _check(home, parent, content, "fork")
