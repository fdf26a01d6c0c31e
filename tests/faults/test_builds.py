"""Builds that end early: whatever stops one, nothing of it is left, and the next one succeeds."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.errors import HostLacks, Interrupted
from insula.host.namespaces import remove_handed_over
from insula.images.build import build
from insula.images.catalogue import find, sweep
from insula.images.progress import Progress, Watcher
from insula.images.recipe import load_recipe
from insula.images.record import read_image
from insula.images.verify import verify
from insula.store import names
from insula.store.names import Home
from tests.framework.processes import inhabitants

_BUILDER = """
import sys
from pathlib import Path
from insula.errors import InsulaError
from insula.images.build import build
from insula.images.progress import Watcher
from insula.images.recipe import load_recipe
from insula.store.names import Home
try:
    build(load_recipe("tiny"), Home(Path(sys.argv[1])), Watcher(lambda progress: print(progress.step, flush=True)))
except InsulaError as error:
    sys.exit(error.code)
"""
_STEPS = ["preparing", "getting packages", "putting the root together", "hashing"]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def left(home: Home) -> set[str]:
    return set(os.listdir(home.images)) - {names.IMAGES_LOCK, names.IMAGE_NAMES}


@contextlib.contextmanager
def builder_at(home: Home, step: str) -> Iterator[subprocess.Popen[str]]:
    """A process that builds ``tiny`` and has come to ``step``."""
    child = subprocess.Popen([sys.executable, "-c", _BUILDER, os.fspath(home.root)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child:
        for line in child.stdout:
            if line.strip() == step:
                break
        else:
            pytest.fail(f"the build never came to '{step}'")
        yield child
        child.stdout.read()


def wait_until_the_room_is_empty(home: Home) -> None:
    """Every process of the room ends by itself; each is waited for by a pidfd, 10 s at most.

    One that the builder was just starting holds, until it is another program, all that the builder held: its lock, too.
    """
    for lock in home.images.glob(f"{names.BUILDING_PREFIX}*/{names.LOCK}"):
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
    for pid in inhabitants(home.root):
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            assert select.select([descriptor], [], [], 10)[0], f"process {pid} of the room goes on"
            os.close(descriptor)


@pytest.mark.parametrize("step", _STEPS)
def test_a_killed_build_leaves_nothing_once_swept(home: Home, step: str) -> None:
    with builder_at(home, step) as child:
        child.kill()
    wait_until_the_room_is_empty(home)
    sweep(home)
    assert left(home) == set()
    assert find(home, "tiny") is None


def test_a_build_killed_at_its_end_is_whole_or_not_there(home: Home) -> None:
    with builder_at(home, "done") as child:
        child.kill()
    sweep(home)
    for digest in left(home):
        verify(home, read_image(home.image(digest)))
    image = build(load_recipe("tiny"), home)
    assert left(home) == {image.digest}
    assert find(home, "tiny") == image


@pytest.mark.parametrize("step", ["getting packages", "writing the file system"])
def test_an_interrupted_build_leaves_nothing_at_once(home: Home, step: str) -> None:
    with builder_at(home, step) as child:
        child.send_signal(signal.SIGINT)
    wait_until_the_room_is_empty(home)
    assert left(home) == set()


def test_an_interruption_while_the_room_is_cleared_leaves_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user may not remove by himself what packages made."""

    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    seen: list[str] = []
    monkeypatch.setattr("insula.images.room.remove_handed_over", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(load_recipe("tiny"), home, Watcher(lambda progress: seen.append(progress.step), lambda: "getting packages" in seen))
    assert left(home) == set()


def test_a_build_told_to_stop_stops_and_the_next_succeeds(home: Home) -> None:
    seen: list[str] = []

    def report(progress: Progress) -> None:
        seen.append(progress.step)

    with pytest.raises(Interrupted):
        build(load_recipe("tiny"), home, Watcher(report, lambda: "getting packages" in seen))
    assert left(home) == set()
    image = build(load_recipe("tiny"), home, Watcher())
    assert left(home) == {image.digest}
    again: list[str] = []
    assert build(load_recipe("tiny"), home, Watcher(lambda progress: again.append(progress.step))) == image
    assert again == []


def test_two_builds_of_the_same_make_one(home: Home) -> None:
    with builder_at(home, "getting packages") as child:
        seen: list[str] = []
        image = build(load_recipe("tiny"), home, Watcher(lambda progress: seen.append(progress.step)))
        assert set(seen) == {"waiting for another build of the same recipe"}
    assert child.returncode == 0
    assert left(home) == {image.digest}


@pytest.mark.parametrize("refresh", [False, pytest.param(True, marks=pytest.mark.full)])
def test_a_damaged_image_is_replaced_by_building_anew(home: Home, refresh: bool) -> None:
    image = build(load_recipe("tiny"), home)
    image.root_layer.unlink()
    image.root_layer.write_bytes(b"evil")
    anew = build(load_recipe("tiny"), home, refresh=refresh)
    assert anew.digest == image.digest
    assert anew.root_layer.stat().st_size == anew.record.files[names.ROOT_LAYER].size
    assert left(home) == {image.digest}


def test_too_little_space_is_told_before_anything_is_done(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("insula.images.build.free_bytes", lambda _: 100 << 20)
    with pytest.raises(HostLacks) as error:
        build(load_recipe("tiny"), home)
    assert error.value.code == "no_space"
    assert left(home) == set()


@pytest.mark.root
def test_a_disk_that_fills_up_on_the_way_is_told(tmp_path: Path) -> None:
    """A real small file system, and a builder that was promised more than there is."""
    promised = _BUILDER.replace("try:", "import insula.images.build as module\nmodule.free_bytes = lambda _: 1 << 40\ntry:", 1)
    script = 'mount -t tmpfs -o size=90m,mode=0700 small "$2" && exec "$1" -c "$3" "$2/home"'
    folder = tmp_path / "small"
    folder.mkdir()
    words = ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, os.fspath(folder), promised]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (1, "no_space")
    remove_handed_over(folder)
