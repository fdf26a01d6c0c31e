"""Holding a real machine down and letting it go: nothing of it stands in its record, and nothing of it stays."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

import insula
from insula.host.cgroup_trees import usable_trees
from insula.operations.context import Context
from insula.operations.holding import held_down, hold_down, is_held_down
from insula.resources.groups import group_of
from insula.resources.holds import EASE, Hold
from insula.resources.pressure import Resource
from insula.store import names
from insula.store.machines import read_machine
from insula.store.names import Home
from tests.framework.doors import popen_cli, run_cli

HOLDS: dict[Resource, Hold] = {"cpu": Hold(0.5, 0.9), "disk": Hold(4.0 * 1024 * 1024, 9e6)}


@pytest.fixture
def context(home: Path) -> Context:
    return Context(Home(home))


@pytest.fixture
def folder(context: Context, running: str) -> Path:
    """Of a machine that runs and is held down, as by a guard that was killed then."""
    hold_down(context, running, HOLDS)
    return context.home.machine(running)


def _quota(context: Context, folder: Path) -> str | None:
    """Its limit of CPU time in the kernel's words; None where there is no group."""
    group = group_of(context.home, folder / names.RUN)
    if group is None:
        return None
    return (group.read("cpu", "cpu.cfs_quota_us") or group.read("cpu", "cpu.max") or "").split()[0]


def _held_to(context: Context, folder: Path) -> set[str]:
    return {hold.limit for hold in insula.connect(context.home.root).get(folder.name).show().holds if "held down" in hold.by}


def _is_free(context: Context, folder: Path) -> bool:
    return _quota(context, folder) in (None, "-1", "max") and not is_held_down(folder) and not _held_to(context, folder)


def test_it_is_held_and_its_record_does_not_know(context: Context, folder: Path) -> None:
    assert held_down(folder) == HOLDS
    record = read_machine(folder)
    assert (record.limits.cpu_limit, record.limits.disk_rate) == (0, 0)
    assert {"disk-rate", "disk-iops"} <= _held_to(context, folder)
    if any("cpu" in tree.controllers for tree in usable_trees()):
        assert _quota(context, folder) == "50000"
    hold_down(context, folder.name, {"disk": HOLDS["disk"]})
    assert _quota(context, folder) in (None, "-1", "max")
    hold_down(context, folder.name, {})
    assert _is_free(context, folder)


def test_new_limits_take_it_back(context: Context, folder: Path) -> None:
    assert run_cli(context.home.root, "limit", "--cpu-shares", "512", folder.name).returncode == 0
    assert _is_free(context, folder)
    assert read_machine(folder).limits.cpu_shares == 512


def test_a_new_life_begins_without_it(context: Context, folder: Path) -> None:
    machine = insula.connect(context.home.root).get(folder.name)
    machine.stop(force=True)
    assert not is_held_down(folder)
    machine.start()
    assert _is_free(context, folder)


def test_the_next_guard_gives_it_back(context: Context, folder: Path) -> None:
    """Step by step while it works, all at once when it ends. Alone, a machine makes nobody suffer, however busy the host is."""
    done = run_cli(context.home.root, "guard", "--once", "--json", "--interval", "0.1", folder.name)
    looks = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(looks) == 3
    assert not any(look["disturbances"] for look in looks)
    assert {(step["resource"], step["action"], step["problem"]) for look in looks for step in look["steps"]} == {
        ("cpu", "ease", None), ("disk", "ease", None),
    }  # fmt: skip
    assert held_down(folder)["cpu"].cap == pytest.approx(0.5 / EASE)
    with popen_cli(context.home.root, "guard", "--json", "--interval", "0.1", folder.name) as guard:
        assert guard.stdout
        while not json.loads(guard.stdout.readline())["held"]:
            pass
        refused = run_cli(context.home.root, "guard", "--once", "--interval", "0.1", "--json")
        assert json.loads(refused.stderr)["code"] == "guarded"
        guard.send_signal(signal.SIGTERM)
        guard.communicate()
        assert guard.returncode == 0
    assert _is_free(context, folder)
    events = [event["event"] for event in insula.connect(context.home.root).get(folder.name).events()]
    assert "eased" in events
    assert events[-1] == "let-go"


def test_who_only_looks_changes_nothing(context: Context, folder: Path) -> None:
    done = run_cli(context.home.root, "guard", "--dry-run", "--once", "--interval", "0.1")
    assert done.returncode == 0, done.stderr
    assert held_down(folder) == HOLDS
    hold_down(context, folder.name, {})
