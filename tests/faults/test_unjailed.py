"""Hosts where a machine's jail cannot be had: nothing runs without, but what has leave to; that is said, and shows.

The host is one of their own (tests/framework/island.py), the machines are real.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.framework.island import Island, User, island
from tests.framework.project import ROOT

pytestmark = [pytest.mark.root, pytest.mark.limit(600)]

_MACHINE = ("--memory", "128M", "--network", "none")
_BUBBLEWRAP = "/usr/bin/bwrap"
_HOLD = {"limits", "no capabilities", "no new privileges", "system calls"}  # whatever of its host is missing
_SPACES = {"namespaces", "read-only root", "no network"}


@pytest.fixture
def there(home: Path, tiny: str, tmp_path: Path) -> Iterator[Island]:
    with island(tmp_path, home / "images") as made:
        yield made


@contextlib.contextmanager
def _forbidden(user: User) -> Iterator[None]:
    """While this lasts he may make no user namespaces."""
    words = [*user.island.enter(), sys.executable, str(ROOT / "tests" / "framework" / "without_namespaces.py")]
    with subprocess.Popen([*words, "sh", "-c", "echo $$; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as there:
        assert there.stdin is not None
        assert there.stdout is not None
        user.within = ["nsenter", f"--user=/proc/{int(there.stdout.readline())}/ns/user", "--"]
        yield
        user.within = []
        there.stdin.close()


def _layers(user: User, name: str) -> dict[str, set[str]]:
    """The names of its jail's layers, by their states."""
    [told] = user.told("show", "--security", name)
    found: dict[str, set[str]] = {"holds": set(), "absent": set(), "broken": set()}
    for layer in told["layers"]:
        found[layer["state"]].add(layer["name"])
    return found


def _shown(user: User, name: str) -> tuple[str, dict[str, Any]]:
    """What it runs without as `list` shows it, and all of `show`."""
    [machine] = [each for each in user.told("list") if each["name"] == name]
    [details] = user.told("show", name)
    assert details["unjailed"] == machine["unjailed"]
    assert machine["unjailed"] in user.insula("list").stdout
    assert f"without {machine['unjailed']} (--insecure)" in user.insula("show", name).stdout
    return machine["unjailed"], details


@pytest.mark.parametrize("uid", [0, pytest.param(65534, marks=pytest.mark.full)])
def test_without_user_namespaces_a_machine_runs_only_with_leave(there: Island, uid: int) -> None:
    """All that can be had stands around it: of namespaces, root can have all the others, a user none."""
    user = there.user("owner", uid)
    with _forbidden(user):
        user.insula("create", "-q", "--name", "web", *_MACHINE, "tiny")
        told = user.refused("start", "web")
        assert "this host lets nobody like us make user namespaces" in told
        assert "--insecure" in told
        done = user.insula("start", "-q", "--insecure", "web")
        unjailed, details = _shown(user, "web")
        assert done.stderr.splitlines() == [
            f"insula: web runs without its whole jail, as --insecure lets it; it lacks {unjailed}"
        ]
        assert (unjailed == "a user namespace") == (uid == 0)
        assert details["insecure"]
        layers = _layers(user, "web")
        assert layers["broken"] == set()
        assert layers["holds"] >= _HOLD | ({"own user", "read-only root", "no network"} if uid == 0 else set())
        assert layers["absent"] & _SPACES == ({"namespaces"} if uid == 0 else _SPACES)
        assert user.insula("exec", "web", "--", "echo", "works").stdout == "works\n"
        user.insula("stop", "web")
        assert "--insecure" in user.refused("start", "--no-insecure", "web")
        user.insula("delete", "--force", "web")


@pytest.mark.full
@pytest.mark.parametrize("uid", [0, 65534])
def test_without_bubblewrap_the_keeper_makes_the_namespaces(there: Island, uid: int) -> None:
    user = there.user("owner", uid)
    with there.without(_BUBBLEWRAP, "/usr/bin/apt-get"):  # which would see to it, and not on the island alone
        for words in (("run", "-q", *_MACHINE, "tiny"), ("create", "-q", *_MACHINE, "tiny")):
            told = user.refused(*words)
            assert "bubblewrap" in told
            assert "--insecure" in told
        assert user.told("list") == []
        done = user.insula("run", "-q", "--insecure", "--name", "web", *_MACHINE, "tiny")
        assert "insula: web runs without its whole jail, as --insecure lets it; it lacks bubblewrap" in done.stderr
        assert _shown(user, "web")[0].startswith("bubblewrap")
        layers = _layers(user, "web")
        assert layers["broken"] == set()
        assert layers["holds"] >= _HOLD | _SPACES | ({"own user"} if uid == 0 else set())
        facts = {fact["name"]: fact["state"] for fact in json.loads(user.insula("doctor", "--json", check=False).stdout)["facts"]}
        assert facts["packages for jailing machines"] == "missing"
    user.insula("restart", "-q", "web")
    assert user.told("show", "web")[0]["unjailed"] is None  # it is a leave, no wish
    assert _layers(user, "web")["broken"] == set()
    user.insula("delete", "--force", "web")


@pytest.mark.full
@pytest.mark.parametrize("uid", [0, 65534])
def test_its_snapshots_and_forks_are_as_it_is(there: Island, uid: int) -> None:
    user = there.user("owner", uid)
    with _forbidden(user):
        user.insula("create", "-q", "--insecure", "--name", "web", *_MACHINE, "tiny")
        user.insula("start", "-q", "web")
        user.insula("exec", "web", "--", "sh", "-c", "echo before > /root/word")
        user.insula("snapshot", "create", "-q", "web@a")
        user.insula("exec", "web", "--", "sh", "-c", "echo after > /root/word")
        user.insula("snapshot", "restore", "-q", "web@a")
        assert user.insula("exec", "web", "--", "cat", "/root/word").stdout == "before\n"
        said = user.insula("fork", "-q", "--name", "twin", "web@a").stderr
        assert "twin runs without its whole jail" in said
        assert user.insula("exec", "twin", "--", "cat", "/root/word").stdout == "before\n"
        assert _shown(user, "twin")[0] == _shown(user, "web")[0]
        user.insula("suspend", "-q", "web")
        assert "web runs without its whole jail" in user.insula("start", "-q", "web").stderr
        assert user.insula("exec", "web", "--", "cat", "/root/word").stdout == "before\n"
        user.insula("delete", "--force", "web", "twin")
