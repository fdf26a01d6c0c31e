"""A machine's layers: a change is seen, with or without the image, and looking twice costs nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from insula.disks.verify import ensure_layers
from insula.errors import DamagedRecord
from insula.store import names
from insula.store.sums import FileSum, read_stamps, stamp_file, sum_file, write_stamps

LAYER = "layers/root"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine whose layer is a link to an image's file; how that looked is noted."""
    folder = tmp_path / "web"
    (folder / "layers").mkdir(parents=True)
    (tmp_path / "root").write_bytes(b"layer one")
    os.link(tmp_path / "root", folder / LAYER)
    write_stamps(tmp_path / "image.json", {"root": stamp_file(tmp_path / "root")})
    return folder


@pytest.fixture
def sums(machine: Path) -> dict[str, FileSum]:
    return {LAYER: sum_file(machine / LAYER)}


def change_unseen(path: Path) -> None:
    """A change that only hashing can find: same size, and the old time put back."""
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"one", b"two"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_what_the_image_was_found_to_be_is_believed_and_remembered(machine: Path, sums: dict[str, FileSum]) -> None:
    image = machine.parent / "image.json"
    change_unseen(machine / LAYER)  # so that it shows when anything is read
    ensure_layers(machine, sums, image)
    image.unlink()
    ensure_layers(machine, sums, image)


def test_without_a_note_all_is_hashed_once(machine: Path, sums: dict[str, FileSum]) -> None:
    nothing = machine / "nothing"
    ensure_layers(machine, sums, nothing)
    assert set(read_stamps(machine / names.VERIFIED_LAYERS)) == {LAYER}
    change_unseen(machine / LAYER)
    ensure_layers(machine, sums, nothing)
    (machine / names.VERIFIED_LAYERS).write_text("{}")
    with pytest.raises(DamagedRecord, match="layers/root is not what"):
        ensure_layers(machine, sums, nothing)


def test_a_machine_copied_by_hand_is_hashed_and_boots(machine: Path, sums: dict[str, FileSum]) -> None:
    ensure_layers(machine, sums, machine.parent / "image.json")
    copy = machine.with_name("copy")
    shutil.copytree(machine, copy)
    change_unseen(copy / LAYER)
    with pytest.raises(DamagedRecord) as error:
        ensure_layers(copy, sums, machine.parent / "image.json")
    assert error.value.code == "layer_tampered"
    (copy / LAYER).write_bytes((machine / LAYER).read_bytes())
    ensure_layers(copy, sums, machine.parent / "image.json")


@pytest.mark.parametrize("noted", [False, True])
def test_a_changed_or_unreadable_layer_is_refused(machine: Path, sums: dict[str, FileSum], noted: bool) -> None:
    image = machine.parent / "image.json"
    if noted:
        ensure_layers(machine, sums, image)
    with open(machine / LAYER, "ab") as stream:
        stream.write(b"more")
    with pytest.raises(DamagedRecord) as error:
        ensure_layers(machine, sums, image)
    assert error.value.code == "layer_tampered"
    (machine / LAYER).unlink()
    (machine / LAYER).symlink_to("/etc/passwd")
    with pytest.raises(DamagedRecord) as error:
        ensure_layers(machine, sums, image)
    assert error.value.code == "layer_missing"
