"""Control groups are entered by who is to be in them: it writes itself into what it was handed, and keeps none of it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


def entrance(path: Path) -> int:
    path.touch()
    return os.open(path, os.O_WRONLY)


def test_who_enters_writes_itself_into_each_and_keeps_none(keeper_program: str, tmp_path: Path) -> None:
    places = [tmp_path / "cpu", tmp_path / "memory"]
    doors = [entrance(place) for place in places]
    words = [word for door in doors for word in ("--group", str(door))]
    listing = ["/bin/ls", "-l", "/proc/self/fd"]
    done = subprocess.run([keeper_program, "enter", *words, "--", *listing], pass_fds=doors, capture_output=True, text=True)
    for door in doors:
        os.close(door)
    assert done.returncode == 0
    assert [place.read_text() for place in places] == ["0", "0"]
    assert str(tmp_path) not in done.stdout


def test_nothing_runs_outside_a_group_that_cannot_be_entered(keeper_program: str, tmp_path: Path) -> None:
    door = os.open(tmp_path, os.O_RDONLY)
    mark = tmp_path / "ran"
    done = subprocess.run(
        [keeper_program, "enter", "--group", str(door), "--", "/bin/touch", str(mark)],
        pass_fds=[door],
        capture_output=True,
        text=True,
    )
    os.close(door)
    assert (done.returncode, mark.exists()) == (126, False)
    assert "cannot enter its control group" in done.stderr


@pytest.mark.parametrize(
    "words", [["--group", "1", "--", "true"], ["--group", "5"], ["--", ""][:1], ["--group", "x", "--", "true"], ["true"]]
)
def test_what_it_cannot_mean_is_refused(keeper_program: str, words: list[str]) -> None:
    done = subprocess.run([keeper_program, "enter", *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage" in done.stderr
