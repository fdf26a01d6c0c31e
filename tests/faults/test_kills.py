"""`kill -9` and Ctrl-C of a command at every one of its steps: the next one works, nothing is lost, nothing is left behind."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import pytest

import insula
from insula.errors import NotFound
from insula.host import cgroup_trees
from insula.operations.observe import is_alive
from insula.store import names
from tests.faults.rewound import empty_groups, run_next, strike, victim
from tests.framework.doors import run_cli
from tests.framework.points import Points
from tests.framework.processes import wait_settled

pytestmark = pytest.mark.limit(240)

# verb -> the state its machine is in before it
VERBS = {
    "create": "none",
    "run": "none",
    "run-ephemeral": "none",
    "start": "stopped",
    "stop": "running",
    "restart": "running",
    "pause": "running",
    "resume": "paused",
    "rename": "stopped",
    "delete": "running",
    "delete-stopped": "stopped",
}
# Those done one by one at every change they make; the others take a boot for each.
QUICK = ("create", "rename", "delete-stopped")


def _unhurried(verb: str) -> object:
    """A restart is a stop and a start, each of which is tried by itself; all of its steps take the better part of a minute. Those
    of the others take long for the little they change."""
    return pytest.param(verb, marks=pytest.mark.full) if verb in ("restart", "pause", "resume") else verb


def _prepare(home: Path, state: str, name: str) -> None:
    connection = insula.connect(home)
    _remove(home, name)
    if state == "none":
        return
    machine = connection.create("tiny", name=name, memory="128M", network="none")
    if state != "stopped":
        machine.start()
        machine.exec("sh", "-c", "echo precious > /root/note; sync", check=True)
    if state == "paused":
        machine.pause()


def _remove(home: Path, name: str) -> None:
    for each in (name, f"{name}-x"):
        with contextlib.suppress(NotFound):
            insula.connect(home).get(each).delete(force=True)


def _strike(home: Path, name: str, verb: str, step: str) -> int:
    """One round; how many steps came."""
    _prepare(home, VERBS[verb], name)
    return strike(home, step, verb, name, lambda _: _check_whole(home, name, verb))


@pytest.mark.parametrize("verb", [_unhurried(verb) for verb in VERBS if verb != "delete-stopped"])
def test_a_command_killed_at_any_step_leaves_a_machine_that_works(
    home: Path, tiny: str, name: str, points: Points, verb: str
) -> None:
    points.each(lambda step: _strike(home, name, verb, f"{step}"), rounds=2, least=1)
    _remove(home, name)


@pytest.mark.parametrize("verb", QUICK)
def test_a_command_killed_before_any_change_it_makes_leaves_all_in_order(home: Path, tiny: str, name: str, verb: str) -> None:
    changes = 0
    _prepare(home, VERBS[verb], name)
    while (ended := victim(home, f"c{changes + 1}", verb, name))[0] != 0:
        changes += 1
        assert ended[0] == -signal.SIGKILL, ended
        found = [status for status in insula.connect(home).list() if status.name in (name, f"{name}-x")]
        assert [(status.state, status.problem) for status in found] in ([], [("stopped", None)]), ended
        if verb == "create" or not found:
            _prepare(home, VERBS[verb], name)
        elif found[0].name != name:
            insula.connect(home).get(found[0].name).rename(name)
        run_next(home)
        assert [entry.name for entry in (home / "machines").iterdir() if entry.name.startswith(".")] == [], ended
    assert changes > 2, "the verb made hardly a change, so next to nothing was tried"
    if verb == "rename":
        assert insula.connect(home).get(f"{name}-x").start().exec("true").code == 0
    _remove(home, name)


LONG = ("run", "start", "restart", "pause", "resume", "delete")


@pytest.mark.parametrize(
    "verb", [pytest.param(verb, marks=pytest.mark.full) if verb in LONG else verb for verb in VERBS if verb != "delete-stopped"]
)
def test_a_command_interrupted_at_any_step_takes_back_what_it_did(
    home: Path, tiny: str, name: str, points: Points, verb: str
) -> None:
    """Unlike one that was killed it has tidied up itself, before it ended."""
    points.each(lambda step: _interrupt(home, name, verb, step), rounds=3, least=1)
    _remove(home, name)


def _interrupt(home: Path, name: str, verb: str, step: int) -> int:
    """One round; how many steps came."""
    _prepare(home, VERBS[verb], name)
    status, steps, _ = victim(home, f"i{step}", verb, name)
    if status != 0:
        assert status == 130, steps
        _check_tidy(home, name, steps)
        if verb == "run-ephemeral":
            assert not (home / "machines" / name).exists(), steps
        if verb in ("start", "run"):
            assert insula.connect(home).list() == [] or not is_alive(home / "machines" / name), steps
        _check_whole(home, name, verb)
    return len(steps)


@pytest.mark.parametrize("verb", QUICK)
def test_a_command_interrupted_before_any_change_it_makes_leaves_all_in_order(
    home: Path, tiny: str, name: str, verb: str
) -> None:
    changes = 0
    _prepare(home, VERBS[verb], name)
    while (ended := victim(home, f"ic{changes + 1}", verb, name))[0] != 0:
        changes += 1
        assert ended[0] == 130, ended
        found = [status for status in insula.connect(home).list() if status.name in (name, f"{name}-x")]
        assert [(status.state, status.problem) for status in found] in ([], [("stopped", None)]), ended
        run_next(home)  # between making a folder and knowing of it there is an instant
        _check_tidy(home, name, ended[1])
        _prepare(home, VERBS[verb], name)
    assert changes > 2, "the verb made hardly a change, so next to nothing was tried"
    _remove(home, name)


def _check_tidy(home: Path, name: str, steps: list[str]) -> None:
    assert [entry.name for entry in (home / "machines").iterdir() if entry.name.startswith(".")] == [], steps
    assert not (home / "machines" / name / names.JOURNAL).exists(), steps


@pytest.mark.full
@pytest.mark.limit(900)
@pytest.mark.parametrize("verb", ["start", "stop"])
def test_a_command_killed_before_any_change_it_makes_leaves_a_machine_that_works(
    home: Path, tiny: str, name: str, points: Points, verb: str
) -> None:
    points.each(lambda change: _strike(home, name, verb, f"c{change}"), rounds=5, least=3)
    _remove(home, name)


def _check_whole(home: Path, name: str, verb: str) -> None:
    """Whatever the victim left: the list works, the machine (if there is one) starts, keeps its data and can be deleted."""
    connection = insula.connect(home)
    left = [status for status in connection.list() if status.name in (name, f"{name}-x")]
    assert all(status.problem is None for status in left)
    assert len(left) <= 1
    if verb == "run-ephemeral" and left:
        _wait_gone(home, name)
        left = []
    for status in left:
        machine = connection.get(status.name)
        if machine.state == "paused":
            machine.resume()
        if machine.state in ("stopped", "starting"):
            machine.start()
        done = run_cli(home, "exec", "--wait", "60", status.name, "--", "cat", "/root/note")
        if verb in ("stop", "restart") and done.returncode == 125:  # asked already, the guest went down
            wait_settled(home / "machines" / status.name)
            machine.start()
            done = run_cli(home, "exec", status.name, "--", "cat", "/root/note")
        if VERBS[verb] in ("running", "paused"):
            assert done.stdout == b"precious\n"
        machine.delete(force=True)
    scraps = [entry.name for entry in (home / "machines").iterdir() if entry.name.startswith(".")]
    run_next(home)
    assert [entry.name for entry in (home / "machines").iterdir() if entry.name.startswith(".")] == [], scraps
    assert empty_groups(home) == []


@pytest.mark.skipif(
    not any("cpu" in tree.controllers for tree in cgroup_trees.usable_trees()), reason="no control groups can be made"
)
def test_a_machine_whose_limits_were_being_changed_is_held_to_its_record(
    home: Path, tiny: str, running: str, points: Points
) -> None:
    """Killed between any two changes it is held by the next verb to what is written down, be that the new limits or the old."""

    def struck(step: int) -> int:
        machine = insula.connect(home).get(running)
        machine.limit(cpu_shares=1000, disk_rate="none")
        return strike(home, f"c{step}", "limit-machine", running, lambda _: held(machine))

    def held(machine: insula.Machine) -> None:
        machine.limit(burst_time=1)  # the next verb
        limits = machine.show().limits
        assert (limits.cpu_shares, limits.disk_rate) in ((1000, 0), (500, 8 << 20))
        assert all(hold.holds for hold in machine.show().holds)
        assert machine.exec("true").code == 0
        assert empty_groups(home) == []

    points.each(struck, rounds=4, least=3)


def _wait_gone(home: Path, name: str) -> None:
    """An ephemeral machine whose command line died goes away by itself, or with the next changing verb if it never ran."""
    folder = home / "machines" / name
    from insula.host.watch import Watch

    with Watch() as watch:
        watch.add(home / "machines")
        while (folder / "run").exists() and not (folder / "journal.json").exists():
            assert watch.wait_change(timeout=30) or is_alive(folder) is False
    run_cli(home, "delete", "nobody-here")
    assert not folder.exists(), "nobody owns it, and it is there still"


def test_errors_of_the_next_command_are_clear_too(home: Path, tiny: str, name: str) -> None:
    """After a killed start the machine is running or stopped, never in between."""
    _prepare(home, "stopped", name)
    victim(home, 4, "start", name)
    machine = insula.connect(home).get(name)
    assert machine.state in ("stopped", "starting", "running")
    machine.start()
    assert machine.state == "running"
