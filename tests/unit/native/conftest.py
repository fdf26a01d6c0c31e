from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.host.native import native_path
from tests.unit.native.rig import Rig


@pytest.fixture(scope="session")
def keeper_program() -> str:
    return os.fspath(native_path("insula-keeper"))


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose name leaves room for that of a socket."""
    folder = Path(tempfile.mkdtemp(prefix="k"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def rig(keeper_program: str, short_folder: Path) -> Iterator[Rig]:
    rig = Rig(keeper_program, short_folder)
    yield rig
    rig.close()
