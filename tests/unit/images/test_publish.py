"""Giving a finished image its name: what is there already is judged without holding up anybody."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from insula.images import build
from insula.images.progress import Watcher
from insula.images.record import Image, read_image
from insula.images.verify import verify as really_verify
from insula.store import names
from insula.store.names import Home
from tests.unit.images.store import put_image, write


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def _built_again(home: Home, image: Image) -> Path:
    """A staging folder that holds the same content."""
    staging = home.images / f"{names.BUILDING_PREFIX}1"
    shutil.copytree(image.folder, staging)
    (staging / names.IMAGE_RECORD).unlink()
    (staging / names.LOCK).touch()
    return staging


def _lock_is_free(home: Home) -> bool:
    descriptor = os.open(home.images / names.IMAGES_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    with contextlib.closing(os.fdopen(descriptor, "wb")), contextlib.suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _watched(monkeypatch: pytest.MonkeyPatch, home: Home, then: Callable[[], None] = lambda: None) -> list[bool]:
    """Whether the lock was free whenever a whole image was hashed; ``then`` happens after the first time."""
    free: list[bool] = []
    hashing = really_verify

    def verify(home: Home, image: Image) -> None:
        free.append(_lock_is_free(home))
        try:
            hashing(home, image)
        finally:
            if len(free) == 1:
                then()

    monkeypatch.setattr(build, "verify", verify)
    return free


def test_a_sound_one_stays_and_nobody_waits_while_it_is_hashed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    image = put_image(home, "same")
    staging, inode = _built_again(home, image), image.folder.stat().st_ino
    free = _watched(monkeypatch, home)
    build._publish(home, staging, image.record, Watcher())
    assert image.folder.stat().st_ino == inode
    assert free
    assert all(free)


def test_a_damaged_one_gives_way(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    image = put_image(home, "same")
    staging = _built_again(home, image)
    (image.folder / names.KERNEL).unlink()
    write(image.folder / names.KERNEL, b"something else")
    free = _watched(monkeypatch, home)
    published = build._publish(home, staging, image.record, Watcher())
    assert (published.folder / names.KERNEL).read_bytes() == b"kernel same".replace(b"kernel", names.KERNEL.encode())
    assert all(free)


def test_one_that_another_mended_meanwhile_stays(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    image = put_image(home, "same")
    staging = _built_again(home, image)
    mended = home.images / "mended"
    shutil.copytree(image.folder, mended)
    inode = mended.stat().st_ino
    (image.folder / names.KERNEL).unlink()

    def mend() -> None:
        image.folder.rename(home.images / f"{names.GONE_PREFIX}1")
        mended.rename(image.folder)

    _watched(monkeypatch, home, mend)
    build._publish(home, staging, image.record, Watcher())
    assert read_image(image.folder).folder.stat().st_ino == inode
