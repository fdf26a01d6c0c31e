"""Where groups can be had, read from what kernels of all kinds say; and groups in folders that stand for a tree of version 2."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from insula.host import cgroup_trees
from insula.host.cgroup_trees import Tree, kind_of, parse_trees
from insula.host.cgroups import Group, find, leaves, made, remove, sweep

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/my\\040unified rw,relatime - cgroup2 cgroup2 rw
"""
HYBRID_OWN = """\
4:memory:/user
3:cpu,cpuacct:/work/shop
2:devices:/
1:name=systemd:/user.slice
0::/user.slice/session-3.scope
"""
V2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
SCOPE = "/user.slice/user-1000.slice/user@1000.service/app.slice/run-1.scope"


def places(mounts: str, groups: str, *, root: bool) -> list[tuple[int, str, str]]:
    return [(version, ",".join(sorted(names)), str(base)) for version, names, base in parse_trees(mounts, groups, root=root)]


def test_root_makes_groups_at_the_top_of_each_tree() -> None:
    assert places(HYBRID, HYBRID_OWN, root=True) == [
        (1, "cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct"),
        (1, "memory", "/sys/fs/cgroup/memory"),
        (2, "", "/sys/fs/cgroup/my unified"),
    ]


def test_others_make_them_below_their_own() -> None:
    assert places(HYBRID, HYBRID_OWN, root=False) == [
        (1, "cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/work/shop"),
        (1, "memory", "/sys/fs/cgroup/memory/user"),
        (2, "", "/sys/fs/cgroup/my unified/user.slice/session-3.scope"),
    ]
    assert places(V2, f"0::{SCOPE}\n", root=False) == [(2, "", f"/sys/fs/cgroup{SCOPE}")]


def test_who_was_put_aside_for_groups_makes_them_where_it_was() -> None:
    assert places(V2, f"0::{SCOPE}/insula-callers\n", root=False) == [(2, "", f"/sys/fs/cgroup{SCOPE}")]


def test_a_tree_that_is_shown_in_part_begins_there() -> None:
    part = V2.replace(" / /sys", " /docker/abc /sys")
    assert places(part, "0::/docker/abc/inner\n", root=False) == [(2, "", "/sys/fs/cgroup/inner")]


@pytest.mark.parametrize(("versions", "kind"), [((1, 1), "v1"), ((2,), "v2"), ((1, 2), "hybrid"), ((), "none")])
def test_the_kind_of_a_host(versions: tuple[int, ...], kind: str) -> None:
    assert kind_of([Tree(version, frozenset(), Path("/")) for version in versions]) == kind


def test_nothing_is_found_where_nothing_is_said(tmp_path: Path) -> None:
    assert cgroup_trees.find_trees(tmp_path) == []


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Folders behave as a tree of version 2 without controllers does, but that nobody can be in them."""
    return Tree(2, frozenset(), tmp_path)


def test_a_group_is_made_and_goes_with_all_above_it(tree: Tree) -> None:
    with made("home", "web.1", [tree]) as group:
        assert group.is_whole()
        assert leaves("home", [tree]) == {"web.1"}
        assert group.folder(tree) == tree.base / "insula/home/web.1"
    assert remove(group)
    assert list(tree.base.iterdir()) == []


def test_the_last_to_go_takes_what_is_above_along_and_not_before(tree: Tree) -> None:
    with made("home", "web.1", [tree]) as one, made("home", "db.2", [tree]) as other:
        assert remove(one)
        assert leaves("home", [tree]) == {"db.2"}
    assert remove(other)
    assert not (tree.base / "insula").exists()


def test_a_group_that_is_being_made_is_not_swept_and_one_that_was_is(tree: Tree) -> None:
    with made("home", "web.1", [tree]):
        assert sweep("home", [tree]) == []
    assert sweep("home", [tree]) == ["web.1"]
    assert not (tree.base / "insula").exists()


def test_who_comes_while_all_is_taken_away_makes_it_again(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the folder above and the group itself somebody removes the empty folder."""
    real = fcntl.flock
    times: list[int] = []

    def take_away(descriptor: int, how: int) -> None:
        real(descriptor, how)
        if not times:
            times.append(1)
            (tree.base / "insula/home/web.1").rmdir()
            (tree.base / "insula/home").rmdir()

    monkeypatch.setattr(fcntl, "flock", take_away)
    with made("home", "web.1", [tree]) as group:
        assert (times, group.is_whole()) == ([1], True)


def test_where_none_can_be_made_there_is_none(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with made("home", "web.1", [Tree(2, frozenset(), file)]) as group:
        assert group.trees == ()
    assert find("home", "web.1", [Tree(2, frozenset(), file)]) is None


def test_controllers_of_version_2_are_those_that_were_passed_on(tree: Tree) -> None:
    with made("home", "web.1", [tree]) as group:
        folder = group.folder(tree)
        (folder / "cgroup.controllers").write_text("cpu memory\n")
        (folder / "cpu.max").write_text("max 100000\n")
        full = Group("home", "web.1", (Tree(2, frozenset({"cpu", "memory", "io"}), tree.base),))
        assert full.versions() == {"cpu": 2, "memory": 2}
        assert full.where("io") is None
        full.write("cpu", "cpu.max", "50000 100000")
        assert full.read("cpu", "cpu.max") == "50000 100000"
        with pytest.raises(FileNotFoundError):
            full.write("io", "io.weight", "10")
        assert full.read("memory", "memory.events") is None
        for file in ("cgroup.controllers", "cpu.max"):
            (folder / file).unlink()
        os.rmdir(folder)
