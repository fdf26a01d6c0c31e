"""`kill -9` of a command, of QEMU or of a keeper at every step of what makes machines out of others: clones, warm states, what is
run from those, and spares, before and while they are taken. What was is unharmed, what is new is whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import json
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
from tests.faults.rewound import left_over, settled, victim
from tests.framework.doors import run_cli

pytestmark = [pytest.mark.guest, pytest.mark.limit(120)]

_PATIENCE = 20.0  # seconds for what ends or goes on by itself
_DEEPEST = 8  # layers: each clone that is killed leaves one more, and makes one more change for it
# Each verb, and who is killed under it beside the command itself: no guest runs while a machine is cloned.
VERBS = {"clone": "", "clone-full": "", "warm": "QK", "run": "QK", "run-ephemeral": "QK", "spare": "QK", "fork": "QK"}
# What a verb may say when QEMU or a keeper dies under it.
_SAID = {
    "machine_ended",
    "load_failed",
    "failed_to_start",
    "keeper_failed",
    "keeper_gone",
    "not_running",
    "wrong_state",
    "agent_absent",
    "killed",  # of a boot: how it ended
}
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
    done = run_cli(home, "delete", "--json", "nobody-here")
    assert json.loads(done.stderr)["code"] == "machine_not_found"
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


def _kill_cli(home: Path, parent: str, content: list[str], verb: str, counted: str, step: int) -> bool:
    """One round; whether the request was killed and not done."""
    _prepare(home, parent, verb)
    status, steps, _ = victim(home, f"{counted}{step}", verb, _named(parent, verb))
    try:
        assert status in (0, -signal.SIGKILL)
        _check(home, parent, content, verb)
        if status and verb == "run-ephemeral":
            assert _children(home, parent) == []
    except BaseException as failure:
        failure.add_note(f"{verb} killed at {steps[-3:]}")
        raise
    return status != 0


def _kill_other(home: Path, parent: str, content: list[str], verb: str, letter: str, counted: str, step: int) -> bool:
    """One round; whether there was such a step."""
    _prepare(home, parent, verb)
    status, steps, code = victim(home, f"{letter}{counted}{step}", verb, _named(parent, verb))
    try:
        assert status in (0, 3)
        assert code in _SAID or status == 0
        _check(home, parent, content, verb)
    except BaseException as failure:
        failure.add_note(f"{verb}: {letter} killed at {steps[-3:]}, then {code}")
        raise
    return len(steps) >= step


# Enough to see that each of them is looked at; the long tests try them all.
_FEW_STEPS = [("clone", "", 2), ("clone-full", "", 1), ("warm", "", 3), ("run", "", 2), ("spare", "c", 25), ("fork", "c", 10)]


@pytest.mark.parametrize(("verb", "counted", "step"), _FEW_STEPS)
def test_a_command_killed_leaves_all_in_order(
    home: Path, parent: str, content: list[str], verb: str, counted: str, step: int
) -> None:
    assert _kill_cli(home, parent, content, verb, counted, step), "it was done before that step came"


@_FULL
@pytest.mark.limit(600)
@pytest.mark.parametrize("verb", VERBS)
def test_a_command_killed_at_any_step_leaves_all_in_order(home: Path, parent: str, content: list[str], verb: str) -> None:
    step = 1
    while _kill_cli(home, parent, content, verb, "", step):
        step += 1
    assert step > 1, "the verb told of no step, so nothing was tried"


@_FULL
@pytest.mark.limit(1800)
@pytest.mark.parametrize("verb", VERBS)
def test_a_command_killed_before_any_change_it_makes_leaves_all_in_order(
    home: Path, parent: str, content: list[str], verb: str
) -> None:
    change, stride = 1, 5 if verb == "warm" else 1  # it boots each time
    while _kill_cli(home, parent, content, verb, "c", change):
        change += stride
    assert change > 20, "the verb made hardly a change, so next to nothing was tried"


@pytest.mark.parametrize(("verb", "letter", "step"), [("run", "Q", 2), ("fork", "Q", 1), ("fork", "K", 1)])
def test_a_qemu_or_keeper_killed_is_told(home: Path, parent: str, content: list[str], verb: str, letter: str, step: int) -> None:
    assert _kill_other(home, parent, content, verb, letter, "", step), "it was done before that step came"


@_FULL
@pytest.mark.limit(1800)
@pytest.mark.parametrize(("verb", "letter"), [(verb, letter) for verb, letters in VERBS.items() for letter in letters])
def test_a_qemu_or_keeper_killed_before_a_change_is_told(
    home: Path, parent: str, content: list[str], verb: str, letter: str
) -> None:
    change, stride = 1, 6 if verb == "warm" else 3
    while _kill_other(home, parent, content, verb, letter, "c", change):
        change += stride
    assert change > 20, "the verb made hardly a change, so next to nothing was tried"


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
