"""A snapshot in the middle of the tree goes: what descended from it descends from its parent, also when the command is killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import insula
from tests.faults.rewound import left_over, strike
from tests.framework.doors import run_cli
from tests.framework.points import Points

pytestmark = [pytest.mark.guest, pytest.mark.limit(120)]


def _machine(home: Path, tiny: str, name: str) -> insula.Machine:
    return insula.connect(home).create(tiny, name=name, memory="128M", network="none")


def _tree(home: Path, name: str) -> dict[str, tuple[str | None, bool]]:
    """Of each snapshot its parent, and whether the machine descends from it."""
    listed = json.loads(run_cli(home, "snapshot", "list", "--json", name).stdout)
    return {one["name"]: (one["parent"], one["current"]) for one in listed}


def test_what_descends_from_a_deleted_snapshot_descends_from_its_parent(home: Path, tiny: str, name: str) -> None:
    machine = _machine(home, tiny, name)
    for each in ("a", "b", "c"):
        machine.snapshot(each)
    insula.Snapshot(machine, "b").restore(keep=False)
    machine.snapshot("d")
    assert _tree(home, name) == {"a": (None, False), "b": ("a", False), "c": ("b", False), "d": ("b", True)}
    insula.Snapshot(machine, "b").delete()
    assert _tree(home, name) == {"a": (None, False), "c": ("a", False), "d": ("a", True)}
    insula.Snapshot(machine, "d").delete()
    assert _tree(home, name) == {"a": (None, True), "c": ("a", False)}
    machine.snapshot("e")
    insula.Snapshot(machine, "a").delete()
    assert _tree(home, name) == {"c": (None, False), "e": (None, True)}
    assert left_over(home) == []


def test_show_tells_all_that_list_does(home: Path, tiny: str, name: str) -> None:
    machine = _machine(home, tiny, name)
    machine.snapshot("a")
    machine.snapshot("b", description="a line")
    listed = {one["name"]: one for one in json.loads(run_cli(home, "snapshot", "list", "--json", name).stdout)}
    shown = json.loads(run_cli(home, "snapshot", "show", "--json", f"{name}@a", f"{name}@b").stdout)
    for one in shown:
        assert listed[one["name"]].items() < one.items()
        assert list(one)[: len(listed[one["name"]])] == list(listed[one["name"]])
    assert {"id", "files", "disks", "board"} <= shown[0].keys()


@pytest.mark.full
def test_a_deletion_killed_before_any_change_it_makes_leaves_a_tree(home: Path, tiny: str, name: str, points: Points) -> None:
    machine = _machine(home, tiny, name)
    machine.snapshot("a")

    def kill(change: int) -> int:
        machine.snapshot("victim")
        machine.snapshot("c")
        return strike(home, f"c{change}", "snapshot-delete", name, check)

    def check(status: int) -> None:
        run_cli(home, "snapshot", "delete", "--json", f"{name}@nothing")  # a verb that finishes the dead one's work
        assert left_over(home) == []
        tree = _tree(home, name)
        assert status or "victim" not in tree
        assert tree["c"] in (("a", True), ("victim", True)) if "victim" in tree else tree["c"] == ("a", True)
        for each in tree.keys() - {"a"}:
            insula.Snapshot(machine, each).delete()
        assert _tree(home, name) == {"a": (None, True)}

    points.each(kill, rounds=8, least=8)
