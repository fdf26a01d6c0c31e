"""The policy of a host's owner: read from a file, or what is usual; what is wrong in it is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from insula.errors import UsageError
from insula.resources import policy
from insula.resources.policy import OVERCOMMIT, Policy, read_policy


@pytest.fixture(autouse=True)
def nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No file of this computer's, and no wish of whoever runs the tests."""
    monkeypatch.delenv(OVERCOMMIT, raising=False)
    system = tmp_path / "etc" / "policy.toml"
    system.parent.mkdir()
    monkeypatch.setattr(policy, "SYSTEM", system)
    return system


def _write(home: Path, text: str) -> None:
    (home / "policy.toml").write_text(text)


def test_without_a_file_what_is_usual_holds(tmp_path: Path) -> None:
    assert read_policy(tmp_path) == Policy(2, None, None)


def test_the_home_s_own_file_goes_before_the_system_s(tmp_path: Path, nothing_else: Path) -> None:
    nothing_else.write_text("memory-overcommit = 3\n")
    assert (read_policy(tmp_path).memory, read_policy(tmp_path).source) == (3, str(nothing_else))
    _write(tmp_path, 'memory-overcommit = 1\ncpu-overcommit = 4\ndisk-overcommit = "unlimited"\n')
    assert read_policy(tmp_path) == Policy(1, 4, None, source=str(tmp_path / "policy.toml"))


def test_what_may_be_taken_from_machines_is_in_it(tmp_path: Path) -> None:
    usual = read_policy(tmp_path)
    assert (usual.balloon, usual.ksm, usual.suspend) == (50, False, None)
    _write(tmp_path, 'balloon-floor = "never"\nksm = true\nsuspend-idle = 30\n')
    chosen = read_policy(tmp_path)
    assert (chosen.balloon, chosen.ksm, chosen.suspend, chosen.memory) == (None, True, 30, 2)


def test_the_environment_goes_before_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, "memory-overcommit = 4\ndisk-overcommit = 1\n")
    for chosen, expected in (("1", 1), ("100", 100), ("", 4)):
        monkeypatch.setenv(OVERCOMMIT, chosen)
        assert (read_policy(tmp_path).memory, read_policy(tmp_path).disk) == (expected, 1)
    for chosen in ("0", "101", "-1", "half", "1.5", "9" * 5000, "\u0662"):
        monkeypatch.setenv(OVERCOMMIT, chosen)
        with pytest.raises(UsageError) as error:
            read_policy(tmp_path)
        assert error.value.code == "bad_overcommit"
        assert error.value.hint


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("\nmemory-overcommit = 0", 2, "'memory-overcommit' is a whole number from 1 to 100"),
        ('memory-overcommit = "unlimited"', 1, "'memory-overcommit' is a whole number"),
        ("# so\n\ncpu-overcommit = 1.5", 3, "'cpu-overcommit' is a whole number from 1 to 100, or 'unlimited'"),
        ("cpu-overcommit = true", 1, "'cpu-overcommit' is"),
        ("disk-overcommit = 10001", 1, "'disk-overcommit' is"),
        ("cpu-overcommit = 1\nkms = true", 2, "there is no 'kms'"),
        ("cpu-overcommit = 1\n[memory]\novercommit = 2", 2, "there is no 'memory'"),
        ("cpu-overcommit = 1\nmemory-overcommit", 2, ""),
        ("balloon-floor = 0", 1, "'balloon-floor' is a whole number from 1 to 100, or 'never'"),
        ('suspend-idle = "unlimited"', 1, "'suspend-idle' is a whole number from 1 to 10080, or 'never'"),
        ("suspend-idle = 10081", 1, "'suspend-idle' is"),
        ("ksm = 1", 1, "'ksm' is true or false"),
        ("ksm = [true]", 1, "'ksm' is true or false"),
        (f"memory-overcommit = {'9' * 5000}", 1, ""),
        (f"cpu-overcommit = {'[' * 5000}", 1, ""),
    ],
)
def test_what_is_wrong_is_named_with_its_line_and_key(tmp_path: Path, text: str, line: int, said: str) -> None:
    _write(tmp_path, text)
    with pytest.raises(UsageError) as error:
        read_policy(tmp_path)
    assert error.value.code == "bad_policy"
    assert f"policy.toml, line {line}: " in error.value.message
    assert said in error.value.message
    assert "disk-overcommit" in (error.value.hint or "")


def test_a_file_that_cannot_be_read_is_no_policy(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").mkdir()
    with pytest.raises(UsageError) as error:
        read_policy(tmp_path)
    assert error.value.code == "bad_policy"


def test_a_pipe_in_its_place_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / policy.FILE)
    with pytest.raises(UsageError, match="no regular file"):
        read_policy(tmp_path)
