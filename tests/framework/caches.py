"""Where tools that the tests run may keep what they know: in the user's cache, never in the clone."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """The folder ``tests/NAME`` of Insula's cache, made if need be."""
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "insula" / "tests" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
