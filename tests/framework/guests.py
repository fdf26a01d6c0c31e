"""Real guests: one home for the run, its images built once; machines shared where a test does not change them."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import insula
from insula.errors import NotFound
from tests.framework.doors import CliDoor, Door, SdkDoor

_numbers = itertools.count(1)
_PATIENCE = 30.0  # seconds


@pytest.fixture(scope="session")
def home() -> Path:
    return Path(os.environ["INSULA_HOME"])


@pytest.fixture(scope="module", autouse=True)
def _no_machine_left() -> Iterator[None]:
    """A module's tests leave no machine: the next one's may want its name, its memory or its CPU."""
    home = Path(os.environ["INSULA_HOME"])
    before = _machines(home)
    yield
    deadline = time.monotonic() + _PATIENCE
    while left := _machines(home) - before:
        if time.monotonic() > deadline:
            pytest.fail(f"machines that nobody deleted: {', '.join(sorted(left))}")
        time.sleep(0.1)  # between two looks: temporary machines are deleted behind their commands


def _machines(home: Path) -> set[str]:
    folder = home / "machines"
    return set(os.listdir(folder)) if folder.exists() else set()


@pytest.fixture(scope="session")
def tiny(home: Path) -> str:
    """The tiny image, built once a run."""
    insula.connect(home).build("tiny")
    return "tiny"


@pytest.fixture(scope="session")
def debian(home: Path) -> str:
    """The Debian image, built once a run."""
    insula.connect(home).build("debian")
    return "debian"


@pytest.fixture(params=["sdk", "cli"])
def door(request: pytest.FixtureRequest, home: Path) -> Door:
    return SdkDoor(home) if request.param == "sdk" else CliDoor(home)


@pytest.fixture
def name(request: pytest.FixtureRequest, home: Path) -> Iterator[str]:
    """A machine's name for this test alone; the machine is deleted afterwards, however the test ended."""
    chosen = f"t{next(_numbers)}-{request.node.originalname.removeprefix('test_').replace('_', '-')}"[:50].rstrip("-")
    yield chosen
    _delete(home, chosen)


@pytest.fixture(scope="module", params=["booted", "forked", "restored"])
def shared(request: pytest.FixtureRequest, home: Path, tiny: str) -> Iterator[str]:
    """A running tiny machine that the tests of a module share, none of them stopping it; whatever brought it to life."""
    chosen = f"{request.param}-{next(_numbers)}"
    machine = insula.connect(home).run(tiny, name=chosen, memory="128M", network="none", cold=request.param == "booted")
    if request.param == "restored":
        machine.snapshot("here").restore(keep=False)
    yield chosen
    _delete(home, chosen)


@pytest.fixture
def running(home: Path, tiny: str, name: str) -> str:
    """A running tiny machine of this test's own."""
    insula.connect(home).run(tiny, name=name, memory="128M", network="none")
    return name


@pytest.fixture
def forget(home: Path) -> Iterator[Callable[[str], None]]:
    """Tell of further machines to be deleted at the end."""
    names: list[str] = []
    yield names.append
    for each in names:
        _delete(home, each)


def _delete(home: Path, name: str) -> None:
    with contextlib.suppress(NotFound):
        insula.connect(home).get(name).delete(force=True)
