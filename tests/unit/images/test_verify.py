"""Verifying: tampering is seen, and looking twice costs nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from insula.errors import DamagedRecord
from insula.images.record import Image
from insula.images.verify import ensure_verified, forget, verify
from insula.store import names
from insula.store.names import Home
from tests.unit.images.store import put_image


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def image(home: Home) -> Image:
    return put_image(home, "one")


def rewrite(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def swap(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


def shorten(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, 3)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "content": lambda path: rewrite(path, path.read_bytes().replace(b"one", b"two")),
    "cut": shorten,
    "gone": Path.unlink,
    "link": swap,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("looked_before", [False, True])
def test_tampering_is_seen(home: Home, image: Image, damage: str, looked_before: bool) -> None:
    if looked_before:
        ensure_verified(home, image)
    DAMAGE[damage](image.root_layer)
    with pytest.raises(DamagedRecord, match=r"root\.qcow2") as error:
        ensure_verified(home, image)
    assert error.value.code == "image_tampered"
    assert "image build --refresh" in (error.value.hint or "")


def test_the_second_look_reads_nothing(home: Home, image: Image) -> None:
    """Shown by a change that only reading can find: same size, and the old time put back."""
    ensure_verified(home, image)
    before = image.root_layer.stat()
    rewrite(image.root_layer, image.root_layer.read_bytes().replace(b"one", b"two"))
    os.utime(image.root_layer, ns=(before.st_atime_ns, before.st_mtime_ns))
    ensure_verified(home, image)
    with pytest.raises(DamagedRecord):
        verify(home, image)


def test_links_that_machines_take_cost_no_new_reading(home: Home, image: Image, tmp_path: Path) -> None:
    ensure_verified(home, image)
    stamp = (home.host / names.VERIFIED / f"{image.digest}.json").stat()
    os.link(image.root_layer, tmp_path / "layer")
    ensure_verified(home, image)
    assert (home.host / names.VERIFIED / f"{image.digest}.json").stat().st_ino == stamp.st_ino


def test_a_stamp_that_was_damaged_or_lost_only_costs_time(home: Home, image: Image) -> None:
    ensure_verified(home, image)
    (home.host / names.VERIFIED / f"{image.digest}.json").write_text("{}")
    ensure_verified(home, image)
    forget(home, image.digest)
    forget(home, image.digest)
    ensure_verified(home, image)


def test_a_stamp_of_another_build_does_not_count(home: Home, image: Image) -> None:
    """A rebuilt image has other bytes under the same digest: its record names them, and the stamp must agree."""
    ensure_verified(home, image)
    path = image.folder / names.IMAGE_RECORD
    path.chmod(0o644)
    path.write_text(path.read_text().replace(image.record.files[names.KERNEL].sha256, "0" * 64))
    from insula.images.record import read_image

    with pytest.raises(DamagedRecord):
        ensure_verified(home, read_image(image.folder))
