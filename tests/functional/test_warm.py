"""`run` is a fork: the first machine of an image and shape boots and its state is kept, later ones go on from that, unless they
are to boot."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import insula
from insula.host.files import remove_tree
from insula.operations.warm import MAX_AGE, REFRESH_AGE
from insula.store import names
from tests.framework.doors import run_cli

pytestmark = [pytest.mark.full, pytest.mark.limit(240)]

_MEMORY = 148 << 20  # nobody else's in this home
_SHAPE = ("--memory", "148M", "--network", "none")


@pytest.fixture(autouse=True)
def nothing_kept(home: Path) -> Iterator[None]:
    yield
    for state in insula.connect(home).warm_states():
        if state.memory == _MEMORY:
            remove_tree(home / "warm" / state.key)


def _run(home: Path, image: str, name: str, *words: str) -> tuple[str | None, str]:
    """How the machine came to life (None: it booted), and what was told of that."""
    done = run_cli(home, "run", *_SHAPE, "--name", name, *words, image, "--", "true")
    assert done.returncode == 0, done.stderr
    machine = insula.connect(home).get(name)
    (started,) = (event for event in machine.events() if event["event"] == "started")
    machine.delete(force=True)
    return started["data"].get("way"), done.stderr.decode()


def _state(home: Path) -> Path:
    (key,) = (state.key for state in insula.connect(home).warm_states() if state.memory == _MEMORY)
    return home / "warm" / key / names.SNAPSHOTS / "booted"


def _grow_old(state: Path, age: float) -> str:
    """Returns its id."""
    path = state / names.SNAPSHOT_RECORD
    record = json.loads(path.read_bytes())
    path.write_text(json.dumps({**record, "created": time.time() - age}))
    return str(record["id"])


def _id(state: Path) -> str | None:
    try:
        return str(json.loads((state / names.SNAPSHOT_RECORD).read_bytes())["id"])
    except FileNotFoundError:  # for a moment: another is taking its place
        return None


def test_the_first_boots_and_says_why_and_later_ones_go_on(
    home: Path, tiny: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    way, told = _run(home, tiny, name)
    assert way == "fork"
    assert "boot once, to keep the state" in told
    state = _state(home)
    first = _id(state)
    way, told = _run(home, tiny, name)
    assert way == "fork"
    assert "boot once" not in told
    assert _run(home, tiny, name, "--cold")[0] is None
    monkeypatch.setenv("INSULA_COLD", "1")
    assert _run(home, tiny, name)[0] is None
    assert _id(state) == first


def test_an_old_state_is_used_and_made_anew_behind_and_one_too_old_is_not(home: Path, tiny: str, name: str) -> None:
    _run(home, tiny, name)
    state = _state(home)
    former = _grow_old(state, REFRESH_AGE + 60)
    way, told = _run(home, tiny, name)
    assert way == "fork"
    assert "boot once" not in told
    while _id(state) in (former, None):  # by a process of its own, which boots a guest
        time.sleep(0.1)
    refreshed = _grow_old(state, MAX_AGE + 60)
    way, told = _run(home, tiny, name)
    assert way == "fork"
    assert "boot once" in told
    assert _id(_state(home)) not in (former, refreshed)
