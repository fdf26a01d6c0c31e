from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from insula.host import acl
from insula.host.namespaces import IdRange
from insula.host.native import native_path
from insula.host.process import run
from insula.isolation.subids import COUNT, FIRST, MEMORY, fact, let_read

GRANTED = IdRange(100_000, 200_000)


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    file = tmp_path / "memory"
    file.write_bytes(b"secret")
    file.chmod(0o400)
    if let_read(file, GRANTED) is None:
        pytest.skip("this file system keeps no lists of who may read a file")
    return file


def test_one_group_and_nobody_else_may_read_a_memory_file(memory: Path) -> None:
    group = let_read(memory, GRANTED)
    assert group is not None
    assert GRANTED.first_uid + FIRST + MEMORY * COUNT <= group < GRANTED.first_uid + GRANTED.count
    assert acl.list_of(memory) == acl.readers(group - GRANTED.first_uid + GRANTED.first_gid)
    assert stat.S_IMODE(memory.stat().st_mode) == 0o440
    assert let_read(memory, GRANTED) == group


def test_it_may_again_after_the_mode_was_set_anew(memory: Path) -> None:
    group = let_read(memory, GRANTED)
    memory.chmod(0o400)
    assert let_read(memory, GRANTED) == group
    assert stat.S_IMODE(memory.stat().st_mode) == 0o440


def test_one_of_other_ids_is_told_anew(memory: Path) -> None:
    other = IdRange(300_000, 300_000)
    group = let_read(memory, other)
    assert group is not None
    assert acl.list_of(memory) == acl.readers(group)


def test_a_file_that_cannot_be_told_has_no_group(tmp_path: Path) -> None:
    assert let_read(tmp_path / "none", GRANTED) is None


def test_ids_that_mean_nothing_are_refused() -> None:
    keeper = str(native_path("insula-keeper"))
    for ids in ("0,5,6", "5,6", "5,6,7,8", "x,6,7", "", "5,6,0"):
        assert run([keeper, "enter", f"--ids={ids}", "--", "true"], check=False).status == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="what is said to root")
def test_root_needs_nobody_to_grant_ids() -> None:
    assert fact().costs == ""
