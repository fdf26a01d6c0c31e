"""The keeper in a world that lies to it, under sanitizers. Seeds are fixed: a failure names the story that shows it again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from insula.host.native import native_sources
from insula.host.process import find_program
from tests.framework.points import Points

_FLAGS = (
    "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
    "-Wl,--wrap=now_ms,--wrap=getrandom",
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_program("gcc") is None:
        pytest.skip("sanitizers need gcc")
    native = native_sources()
    sources = [path for part in ("keeper", "wire") for path in sorted((native / part).glob("*.c")) if path.name != "main.c"]
    program = tmp_path_factory.mktemp("fuzz") / "world"
    subprocess.run(
        ["gcc", *_FLAGS, f"-I{native}", "-o", program, *sorted(Path(__file__).parent.glob("keeper_*.c")), *sources],
        check=True,
        timeout=300,
    )
    return program


def tell(world: Path, first: int, stories: int, patience: float) -> None:
    done = subprocess.run([world, str(first), str(stories)], capture_output=True, text=True, timeout=patience)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == f"{stories} stories\n"


def test_some_stories(world: Path) -> None:
    tell(world, 1, 500, 50)


@pytest.mark.full
@pytest.mark.limit(1800)
def test_many_stories(world: Path, points: Points) -> None:
    tell(world, 1000, points.many(20_000, 200_000), 1700)
