"""Locks between processes: exclusive, told about, freed by death, and never held on a folder that moved away."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from insula.errors import Busy, NotFound
from insula.store.locks import held, machine_lock

_HOLDER = """
import sys
from pathlib import Path
from insula.store.locks import machine_lock
with machine_lock(Path(sys.argv[1]), "web", "snapshot"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    (tmp_path / "web").mkdir()
    return tmp_path / "web" / "lock"


def _holder(lock: Path) -> subprocess.Popen[bytes]:
    child = subprocess.Popen([sys.executable, "-c", _HOLDER, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    return child


def test_a_second_verb_hears_who_is_at_work(lock: Path) -> None:
    with _holder(lock) as child:
        with (
            pytest.raises(Busy, match=rf"web is busy: snapshot, started \d+ s ago by pid {child.pid}"),
            machine_lock(lock, "web", "stop"),
        ):
            pass
        child.kill()


def test_kill_9_frees_the_lock(lock: Path) -> None:
    with _holder(lock) as child:
        child.kill()
    with machine_lock(lock, "web", "stop"):
        pass


def test_the_patient_get_it_when_it_is_free(lock: Path) -> None:
    with _holder(lock) as child:
        assert child.stdin is not None
        threading.Timer(0.05, child.stdin.close).start()
        with machine_lock(lock, "web", "stop", patience=10):
            pass


def test_a_machine_that_went_away_is_not_found(lock: Path) -> None:
    lock.parent.rename(lock.parent.with_name("gone"))
    with pytest.raises(NotFound), machine_lock(lock, "web", "stop"):
        pass


def test_a_machine_renamed_while_we_waited_is_not_found(lock: Path) -> None:
    with _holder(lock) as child:
        assert child.stdin is not None

        def rename_and_free() -> None:
            lock.parent.rename(lock.parent.with_name("shop"))
            child.kill()

        threading.Timer(0.05, rename_and_free).start()
        with pytest.raises(NotFound), machine_lock(lock, "web", "stop", patience=10):
            pass


def test_a_lock_that_is_a_link_is_not_followed(lock: Path, tmp_path: Path) -> None:
    target = tmp_path / "victim"
    target.write_text("precious")
    lock.symlink_to(target)
    with pytest.raises(OSError), machine_lock(lock, "web", "stop"):  # noqa: PT011 - ELOOP has no class of its own
        pass
    assert target.read_text() == "precious"


def test_held_tells_whether_a_half_made_folder_has_a_maker(lock: Path) -> None:
    with held(lock) as free:
        assert free
    with _holder(lock) as child:
        with held(lock) as free:
            assert not free
        child.kill()
    with held(lock) as free:
        assert free


def test_the_card_is_taken_away_again(lock: Path) -> None:
    with machine_lock(lock, "web", "stop"):
        assert b"stop" in lock.read_bytes()
        assert str(os.getpid()).encode() in lock.read_bytes()
    assert lock.read_bytes() == b""
