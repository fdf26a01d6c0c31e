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
    "words",
    [
        *(["--group", "1", "--", "true"], ["--group", "5"], ["--"], ["--group", "x", "--", "true"], ["true"]),
        *([word, "--", "true"] for word in ("--user=0", "--user=", "--user=-1", "--user=4294967295", "--user=7,8", "--groups=7")),
        *([word, "--", "true"] for word in ("--nofile=", "--nofile=x", "--nofile=-1", "--fsize=99999999999999999999", "--cpu=1")),
    ],
)
def test_what_it_cannot_mean_is_refused(keeper_program: str, words: list[str]) -> None:
    done = subprocess.run([keeper_program, "enter", *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_limits_hold_and_nothing_gains_rights(keeper_program: str) -> None:
    words = ["--locked", "--core=0", "--nofile=77", "--memlock=0", "--fsize=4096"]
    look = ["/bin/cat", "/proc/self/limits", "/proc/self/status"]
    done = subprocess.run([keeper_program, "enter", *words, "--", *look], capture_output=True, text=True, check=True)
    lines = {line[:26].strip(): line[26:].split()[:2] for line in done.stdout.splitlines() if line.startswith("Max")}
    assert lines["Max core file size"] == ["0", "0"]
    assert lines["Max open files"] == ["77", "77"]
    assert lines["Max locked memory"] == ["0", "0"]
    assert lines["Max file size"] == ["4096", "4096"]
    assert "NoNewPrivs:\t1" in done.stdout
    assert f"CapInh:\t{0:016x}" in done.stdout


def test_a_lower_limit_stays(keeper_program: str) -> None:
    lower = ["/bin/sh", "-c", 'ulimit -n 50; exec "$0" enter --nofile=77 -- /bin/sh -c "ulimit -n; ulimit -Hn"', keeper_program]
    assert subprocess.run(lower, capture_output=True, text=True, check=True).stdout == "50\n50\n"


@pytest.mark.root
def test_a_user_of_its_own_has_its_groups_and_no_capability(keeper_program: str) -> None:
    words = ["--locked", "--user=1000000007", "--groups=1000000008,1000000009"]
    look = ["/bin/cat", "/proc/self/status"]
    done = subprocess.run([keeper_program, "enter", *words, "--", *look], capture_output=True, text=True, check=True)
    status = dict(line.split(":\t", 1) for line in done.stdout.splitlines())
    assert status["Uid"].split() == status["Gid"].split() == ["1000000007"] * 4
    assert status["Groups"].split() == ["1000000008", "1000000009"]
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may")
def test_nothing_runs_as_somebody_it_cannot_become(keeper_program: str) -> None:
    done = subprocess.run([keeper_program, "enter", "--user=1000000007", "--", "/bin/true"], capture_output=True, text=True)
    assert done.returncode == 126
    assert "cannot" in done.stderr


def test_a_profile_that_cannot_be_had_is_no_way_in(keeper_program: str) -> None:
    words = [keeper_program, "enter", "--label=no-such-profile", "--", "/bin/echo", "in"]
    done = subprocess.run(words, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (126, b"")
    assert b"AppArmor's profile" in done.stderr
