"""Records are replaced whole, and a full disk is told as such."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec
import pytest

from insula.errors import DamagedRecord, HostLacks
from insula.store.records import read_record, write_record


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: str


def test_a_record_replaces_the_former_and_leaves_no_scraps(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    write_record(path, Note("one"))
    write_record(path, Note("two"))
    assert read_record(path, Note) == Note("two")
    assert [entry.name for entry in tmp_path.iterdir()] == ["note.json"]


def test_a_full_disk_keeps_the_former_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "note.json"
    write_record(path, Note("one"))

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HostLacks, match="no space left") as error:
        write_record(path, Note("two"))
    assert error.value.code == "no_space"
    assert read_record(path, Note) == Note("one")
    assert [entry.name for entry in tmp_path.iterdir()] == ["note.json"]


def test_damage_names_the_file_and_the_place(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    path.write_text('{"text": 7}')
    with pytest.raises(DamagedRecord, match=r"note\.json is damaged: .*\$\.text"):
        read_record(path, Note)
