"""What is told of errors: nothing in it may be obeyed by a terminal."""

from __future__ import annotations

import json

import pytest

from insula.cli.main import report
from insula.errors import ChildFailed, InsulaError


def _told(capsys: pytest.CaptureFixture[str], message: str, as_json: bool = False) -> str:
    cause = InsulaError(message)
    cause.__cause__ = ChildFailed("it failed", command="x", status=1, output="one\n\x1b]0;two\x07\n")
    assert report("code", message, "a hint\x1b[2J", as_json, 7, cause=cause) == 7
    return capsys.readouterr().err


def test_control_characters_are_shown_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    told = _told(capsys, "no machine named '\x1b[31mred'")
    assert "\x1b" not in told
    assert "\x07" not in told
    assert "insula: no machine named '\\x1b[31mred'" in told
    assert "    one\n" in told
    assert "hint: a hint\\x1b[2J" in told


def test_json_keeps_to_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    told = _told(capsys, "two\nlines\x1b", as_json=True)
    assert json.loads(told) == {"code": "code", "message": "two\nlines\x1b", "hint": "a hint\x1b[2J"}
    assert told.count("\n") == 1
    assert "\x1b" not in told


def test_a_failed_programs_last_words_are_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    for output, shown in (("one\ntwo", ["    one", "    two"]), ("it failed: one", [])):
        error = ChildFailed("it failed: one", command="x", status=1, output=output)
        report(error.code, error.message, None, False, 1, cause=error)
        assert capsys.readouterr().err.splitlines() == ["insula: it failed: one", *shown]
