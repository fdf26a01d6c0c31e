"""Limits from a file of profiles: what it may hold, and that what is wrong is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula.cli.limits import read_profile
from insula.errors import NotFound, UsageError
from insula.model.limits import LimitChanges
from insula.model.network import Rates

PROFILES = """\
# what our machines may have
[small]
cpu-limit = 0.5
disk-rate = "20M"
pin = "0-1"
net-rate = "20mbit/50mbit"
[ "big one" ]
cpu-shares = 4096
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "limits.toml"
    file.write_text(PROFILES)
    return file


def test_a_profile_is_read_by_its_name(path: Path) -> None:
    rates = Rates(20_000_000, 50_000_000)
    assert read_profile("small", path) == LimitChanges(cpu_limit=500, disk_rate=20 << 20, pin=(0, 1), net=rates)
    assert read_profile("big one", path) == LimitChanges(cpu_shares=4096)


def test_one_that_is_not_there_is_told_with_those_that_are(path: Path) -> None:
    with pytest.raises(NotFound) as refusal:
        read_profile("tiny", path)
    assert (refusal.value.code, refusal.value.hint) == ("profile_not_found", "it has: big one, small")


def test_without_a_file_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="No such file"):
        read_profile("small", tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[small]\ncpu-limit = 1\ncpu-limits = 2\n", "line 3: cpu-limits: there is no such limit"),
        ("[other]\ndisk-rate = 'x'\n[small]\n\ndisk-rate = 'x'\n", "line 5: disk-rate: 'x' is no rate"),
        ("[small]\npin = [1, 2]\n", "line 2: pin: that is no value"),
        ("[small]\ncpu-limit = true\n", "line 2: cpu-limit: that is no value"),
        ("[small]\ncpu-limit = -1\n", "line 2: cpu-limit: '-1' is no number of CPUs"),
        ("[small\n", "line 1"),
        (f"[small]\ncpu-shares = {'9' * 5000}\n", "limits.toml: "),
        (f"[small]\ncpu-shares = {'[' * 5000}\n", "limits.toml: "),
        ("small = 3\n[small]\n", "line 2"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "limits.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as refusal:
        read_profile("small", path)
    assert refusal.value.code == "bad_profile"
    assert words in refusal.value.message
    assert str(path) in refusal.value.message
