"""Values on the command line that no machine could make sense of are refused before anything is done."""

from __future__ import annotations

import pytest

from insula.cli.main import run_command


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "1e9", "soon"])
@pytest.mark.parametrize("words", [("stop", "--timeout"), ("start", "--timeout"), ("exec", "--wait")])
def test_a_time_that_cannot_be_waited_for(words: tuple[str, str], seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, option = words
    assert run_command([command, option, seconds, "web", "--", "true"]) == (125 if command == "exec" else 2)
    assert "seconds" in capsys.readouterr().err


def test_a_command_cannot_be_detached_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["run", "--detach", "tiny", "--", "true"]) == 125
    assert "insula exec" in capsys.readouterr().err


@pytest.mark.parametrize("memory", ["1M", "99999999999999999999G", "2T"])
def test_memory_that_cannot_be(memory: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["create", "--dry-run", "--memory", memory, "tiny"]) == 2
    assert "memory" in capsys.readouterr().err
