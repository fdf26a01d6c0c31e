"""What a build needs is asked for before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula.errors import HostLacks
from insula.host import process
from insula.images.build import build
from insula.images.recipe import load_recipe
from insula.store.names import Home


def test_without_bubblewrap_no_build_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("tiny")
    home = Home(tmp_path / "home")
    monkeypatch.setattr(process, "_SYSTEM_PATH", str(tmp_path))
    with pytest.raises(HostLacks, match="'bwrap' is not installed") as refusal:
        build(recipe, home)
    assert refusal.value.code == "program_missing"
    assert [path.name for path in home.images.iterdir() if path.is_dir()] == []
