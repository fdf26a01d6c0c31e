"""What a loaded guest is still to be told outlives the command that was to tell it."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula.store import names
from insula.store.due import Due, clear_due, note_due, read_due


def test_nothing_is_due_unless_it_is_noted(tmp_path: Path) -> None:
    assert read_due(tmp_path) is None
    clear_due(tmp_path)


@pytest.mark.parametrize("due", [Due(), Due(stands=False), Due(stands=False, moved=True)])
def test_what_is_noted_is_read_until_it_is_cleared(tmp_path: Path, due: Due) -> None:
    note_due(tmp_path, due)
    assert read_due(tmp_path) == due
    clear_due(tmp_path)
    assert read_due(tmp_path) is None


def test_one_noted_before_there_were_guests_that_go_on_at_once_stands(tmp_path: Path) -> None:
    (tmp_path / names.DUE).write_text('{"version":1,"former":null}')
    assert read_due(tmp_path) == Due(stands=True, moved=False)


def test_a_note_that_cannot_be_read_lets_no_guest_go_on_untold(tmp_path: Path) -> None:
    (tmp_path / names.DUE).write_text("{")
    assert read_due(tmp_path) == Due(stands=True)
