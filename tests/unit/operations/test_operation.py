"""Steps and their undos: last first, all of them, and none after success."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from insula.errors import Interrupted
from insula.operations import journal
from insula.operations.operation import Operation, Progress, Steps


def test_undos_run_last_first_when_it_fails() -> None:
    undone: list[int] = []
    with pytest.raises(RuntimeError), Steps(Operation("test")) as steps:
        for number in range(3):
            steps.begin(f"step {number}")
            steps.undo(partial(undone.append, number))
        raise RuntimeError
    assert undone == [2, 1, 0]


def test_an_undo_that_fails_stops_neither_the_others_nor_the_error() -> None:
    undone: list[str] = []

    def broken() -> None:
        raise OSError

    with pytest.raises(RuntimeError), Steps(Operation("test")) as steps:
        steps.undo(lambda: undone.append("first"))
        steps.undo(broken)
        raise RuntimeError
    assert undone == ["first"]


def test_nothing_is_undone_after_success() -> None:
    undone: list[int] = []
    with Steps(Operation("test")) as steps:
        steps.undo(lambda: undone.append(1))
    assert undone == []


def test_a_cancelled_operation_begins_no_further_step() -> None:
    heard: list[Progress] = []
    operation = Operation("test", "web", heard.append)
    undone: list[int] = []
    with pytest.raises(Interrupted, match="test was cancelled"), Steps(operation) as steps:
        steps.begin("one")
        steps.undo(lambda: undone.append(1))
        operation.cancel()
        steps.begin("two")
    assert [progress.step for progress in heard] == ["one"]
    assert undone == [1]


def test_a_journal_tells_what_was_under_way(tmp_path: Path) -> None:
    assert journal.pending(tmp_path) is None
    journal.note(tmp_path, "start", "launch")
    assert journal.pending(tmp_path) == journal.Entry("start", "launch")
    journal.clear(tmp_path)
    journal.clear(tmp_path)
    assert journal.pending(tmp_path) is None


def test_a_torn_journal_is_still_a_sign(tmp_path: Path) -> None:
    (tmp_path / "journal.json").write_bytes(b"{")
    assert journal.pending(tmp_path) == journal.Entry("unknown", "unknown")
