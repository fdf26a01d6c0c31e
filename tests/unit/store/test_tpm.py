"""The folder of a TPM is written by a process that a guest may have taken over."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

import pytest

from insula.errors import DamagedRecord
from insula.host.process import spawn
from insula.store.tpm import MOST_BYTES, hand_over, is_served, make_tpm, read_tpm

STATE = "tpm2-00.permall"
HOLD = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tpm(tmp_path / "tpm" / "0", b"state")
    return tmp_path / "tpm" / "0"


def test_a_state_is_kept_as_it_is(folder: Path, tmp_path: Path) -> None:
    assert read_tpm(folder) == b"state"
    assert [path.stat().st_mode & 0o777 for path in (folder.parent, folder, folder / STATE)] == [0o700, 0o700, 0o600]
    make_tpm(tmp_path / "tpm" / "1", None)
    assert read_tpm(tmp_path / "tpm" / "1") is None


def test_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (folder / STATE).unlink()
    (folder / STATE).symlink_to(tmp_path / "secret")
    with pytest.raises(DamagedRecord) as refusal:
        read_tpm(folder)
    assert refusal.value.code == "tpm_damaged"


def test_what_is_no_file_is_not_waited_for(folder: Path) -> None:
    (folder / STATE).unlink()
    os.mkfifo(folder / STATE)
    with pytest.raises(DamagedRecord):
        read_tpm(folder)


def test_what_is_too_large_is_not_read(folder: Path) -> None:
    (folder / STATE).write_bytes(bytes(MOST_BYTES))
    assert read_tpm(folder) == bytes(MOST_BYTES)
    (folder / STATE).write_bytes(bytes(MOST_BYTES + 1))
    with pytest.raises(DamagedRecord):
        read_tpm(folder)


@pytest.mark.root
def test_it_is_handed_to_a_user_without_following_anything(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    (folder / "link").symlink_to(tmp_path / "mine")
    hand_over(folder, 77)
    assert [path.lstat().st_uid for path in (folder, folder / STATE, folder / "link")] == [77, 77, 77]
    assert (tmp_path / "mine").stat().st_uid == 0
    hand_over(tmp_path / "tpm" / "new", 77)
    assert (tmp_path / "tpm" / "new").stat().st_uid == 77


def test_it_is_served_while_somebody_holds_its_lock(folder: Path) -> None:
    assert not is_served(folder)
    lock = folder / ".lock"
    lock.touch()
    assert not is_served(folder)
    listening, speaking = os.pipe()
    reading, life = os.pipe()
    with spawn([sys.executable, "-c", HOLD, lock], stdin=reading, stdout=speaking) as holder:
        os.close(speaking)
        assert os.read(listening, 1) == b"\n"
        assert is_served(folder)
        os.close(life)
        assert holder.wait(10) == 0
    assert not is_served(folder)
    for descriptor in (listening, reading):
        os.close(descriptor)
    with lock.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        assert not is_served(folder)  # our own is none
