"""Files with holes on a file system in memory, and on a disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from insula.errors import HostLacks
from insula.host.holes import copy_sparse, fill_holes
from insula.model.units import MIB
from tests.framework.project import ROOT


def sparse(path: Path) -> os.stat_result:
    with path.open("wb") as stream:
        stream.truncate(8 * MIB)
        stream.write(b"begin")
    return path.stat()


def test_on_a_disk_holes_stay(tmp_path: Path) -> None:
    before = sparse(tmp_path / "file")
    fill_holes(tmp_path / "file")
    assert (tmp_path / "file").stat().st_blocks == before.st_blocks


def test_an_empty_file_has_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fill_holes(tmp_path / "file")


def test_a_copy_has_the_same_in_it_and_the_same_holes(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as stream:
        stream.truncate(8 * MIB)
        for place in (0, 3 * MIB, 5 * MIB):
            stream.seek(place)
            stream.write(os.urandom(70_000))
    with (tmp_path / "file").open("rb") as source, (tmp_path / "copy").open("xb") as target:
        copy_sparse(source.fileno(), target.fileno())
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "file").read_bytes()
    assert (tmp_path / "copy").stat().st_blocks * 512 < MIB


def test_a_copy_of_nothing_but_a_hole(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as source, (tmp_path / "copy").open("xb") as target:
        source.truncate(MIB)
        copy_sparse(source.fileno(), target.fileno())
    assert (tmp_path / "copy").stat().st_size == MIB


_INSIDE = """
import os, sys
from pathlib import Path
from tests.unit.host.test_holes import check_in_memory
check_in_memory(Path("/tmp"))
"""


@pytest.mark.root
@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
@pytest.mark.parametrize("size", ["16m", "4m"])
def test_in_memory_they_take_their_room_or_it_is_refused(size: str) -> None:
    script = f'mount -t tmpfs -o size={size} small /tmp && exec "$@"'
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", sys.executable, "-c", _INSIDE]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}/src:{ROOT}:{':'.join(filter(None, sys.path))}"}
    subprocess.run(words, check=True, env=environment, cwd=ROOT)


def check_in_memory(folder: Path) -> None:
    """What must hold on a tmpfs of 16 MiB, and of 4."""
    before, room = sparse(folder / "file"), os.statvfs(folder)
    if room.f_bavail * room.f_frsize > 8 * MIB:
        fill_holes(folder / "file")
        after = (folder / "file").stat()
        assert after.st_blocks * 512 == after.st_size
        assert after.st_mtime_ns == before.st_mtime_ns
    else:
        with pytest.raises(HostLacks) as caught:
            fill_holes(folder / "file")
        assert caught.value.code == "no_space"
