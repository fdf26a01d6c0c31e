"""The log of writes and what a cut makes of it, on logs written by hand; the reader of qcow2 files against QEMU's own tools."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest

from tests.framework.qcow2 import read_chain
from tests.framework.write_log import PIECE, Disk, WriteLog

_FLUSH = (0, b"", 1)


def _log(path: Path, *entries: tuple[int, bytes, int]) -> WriteLog:
    """A log of requests: offset, data, flags."""
    content = struct.pack("<QQQI", 0x6A736677736872, 1, len(entries), 512).ljust(512, b"\0")
    for at, data, flags in entries:
        content += struct.pack("<QQQQ", at // 512, len(data) // 512, flags, 0).ljust(512, b"\0") + data
    path.write_bytes(content)
    return WriteLog(path)


def _piece(letter: str, count: int = 1) -> bytes:
    return letter.encode() * PIECE * count


@pytest.fixture
def disk_file(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(8 * PIECE))
    return path


def _cut(disk: Disk, position: int, folder: Path, share: float, seed: int = 0) -> str:
    """One letter for each piece of the disk after a cut; a dot for one never written."""
    disk.cut(folder / "cut", disk.advance(position), random.Random(seed), share)
    content = (folder / "cut").read_bytes()
    letters = [content[at : at + PIECE] for at in range(0, len(content), PIECE)]
    assert all(len(set(letter)) == 1 for letter in letters), "a piece was torn"
    return "".join(chr(letter[0] or ord(".")) for letter in letters)


def test_what_was_flushed_stays_and_of_the_rest_anything_may(tmp_path: Path, disk_file: Path) -> None:
    log = _log(tmp_path / "log", (0, _piece("a"), 0), _FLUSH, (PIECE, _piece("b", 6), 0), (0, _piece("c"), 0), _FLUSH)
    disk = Disk(log, disk_file)
    assert _cut(disk, 1, tmp_path, 0.0) == "........"
    assert _cut(disk, 1, tmp_path, 1.0) == "a......."
    assert _cut(disk, 2, tmp_path, 0.0) == "a......."
    assert _cut(disk, 4, tmp_path, 0.0) == "a......."
    assert _cut(disk, 4, tmp_path, 1.0) == "cbbbbbb."
    seen = {_cut(disk, 4, tmp_path, 0.5, seed) for seed in range(20)}
    assert len(seen) > 10
    assert {cut[0] for cut in seen} == {"a", "c"}
    assert _cut(disk, 5, tmp_path, 0.0) == "cbbbbbb."


def test_a_discard_has_no_data_in_the_log(tmp_path: Path) -> None:
    discard = struct.pack("<QQQQ", 0, 64, 4, 0).ljust(512, b"\0")
    _log(tmp_path / "log", (0, _piece("a"), 0))
    with (tmp_path / "log").open("ab") as file:
        file.write(discard + struct.pack("<QQQQ", 0, 0, 1, 0).ljust(512, b"\0"))
    assert [(each.length, each.flush) for each in WriteLog(tmp_path / "log").requests] == [(PIECE, False), (0, False), (0, True)]


def test_a_chain_is_read_as_qemu_wrote_it(tmp_path: Path) -> None:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", lower, "10G"], check=True)
    write = ["-c", "write -q -P 1 5G 128k", "-c", "write -q -P 2 6G 4k"]
    subprocess.run(["qemu-io", "-f", "qcow2", *write, lower], check=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", lower, "-F", "qcow2", upper], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 3 5G 4k", "-c", "write -q -z 6G 64k", upper], check=True)
    ranges = [((5 << 30) + 2048, 4096), ((5 << 30) + (64 << 10), 512), (6 << 30, 4096), (9 << 30, 512)]
    assert read_chain([lower, upper], ranges) == [b"\3" * 2048 + b"\1" * 2048, b"\1" * 512, bytes(4096), bytes(512)]
    assert read_chain([lower], ranges[:1] + ranges[2:]) == [b"\1" * 4096, b"\2" * 4096, bytes(512)]
