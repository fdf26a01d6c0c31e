"""Builds of one recipe wait for each other, and leave nothing in `host/`."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from insula.errors import Interrupted
from insula.images.build import _recipe_lock
from insula.images.catalogue import build_lock, sweep
from insula.images.progress import Progress, Watcher
from insula.store.names import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.prepare()
    return home


def test_the_second_waits_for_the_first_and_the_file_goes_with_the_last(home: Home) -> None:
    order: list[str] = []
    waits = threading.Event()

    def report(progress: Progress) -> None:
        assert progress.step == "waiting for another build of the same recipe"
        waits.set()

    def second() -> None:
        with _recipe_lock(home, "key", Watcher(report)):
            order.append("second")
            assert build_lock(home, "key").exists()

    with _recipe_lock(home, "key", Watcher()):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert list(home.host.iterdir()) == []


def test_who_gives_up_waiting_leaves_the_lock_to_its_holder(home: Home) -> None:
    with _recipe_lock(home, "key", Watcher()):
        with pytest.raises(Interrupted), _recipe_lock(home, "key", Watcher(cancelled=lambda: True)):
            pytest.fail("two builds hold one lock")
        assert build_lock(home, "key").exists()


def test_what_a_killed_build_left_is_swept_and_what_is_held_stays(home: Home) -> None:
    build_lock(home, "dead").touch()
    descriptor = os.open(build_lock(home, "alive"), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    sweep(home)
    assert list(home.host.iterdir()) == [build_lock(home, "alive")]
    os.close(descriptor)
