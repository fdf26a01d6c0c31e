"""What agents and keepers of every version said, recorded, still means the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.corpus.wire.record import HERE, decoded

RECORDINGS = sorted(HERE.glob("v*/*.bin"))


def test_no_recording_was_lost() -> None:
    expected = {(folder, name) for folder in HERE.glob("v*") for name in json.loads((folder / "expected.json").read_text())}
    assert {(path.parent, path.stem) for path in RECORDINGS} == expected
    assert len([path for path in RECORDINGS if path.parent.name == "v1"]) >= 20


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recording_decodes_as_ever(path: Path) -> None:
    expected = json.loads((path.parent / "expected.json").read_text())
    assert decoded(path.stem, path.read_bytes()) == expected[path.stem]
