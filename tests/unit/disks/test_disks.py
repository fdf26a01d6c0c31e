"""Layers and overlays: what is on the disk afterwards."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from insula.disks.convert import raw_to_layer
from insula.disks.layers import link_layer, link_layers, require_layers
from insula.disks.overlays import create_overlay
from insula.errors import DamagedRecord, UsageError


def info(path: Path) -> dict[str, object]:
    answer = subprocess.run(["qemu-img", "info", "--output=json", path], check=True, capture_output=True).stdout
    found: dict[str, object] = json.loads(answer)
    return found


def test_a_linked_layer_is_the_same_file(tmp_path: Path) -> None:
    source = tmp_path / "layer"
    source.write_bytes(b"x")
    link_layer(source, tmp_path / "link")
    assert source.stat().st_ino == (tmp_path / "link").stat().st_ino
    with pytest.raises(FileExistsError):
        link_layer(source, tmp_path / "link")


def test_several_layers_are_linked_into_their_folders(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / f"layer-{name}").write_bytes(name.encode())
    link_layers({tmp_path / name / "link": tmp_path / f"layer-{name}" for name in ("one", "two")})
    for name in ("one", "two"):
        assert (tmp_path / name / "link").samefile(tmp_path / f"layer-{name}")
    with pytest.raises(DamagedRecord):
        link_layers({tmp_path / "one" / "other": tmp_path / "missing"})


def test_across_file_systems_a_layer_is_copied(tmp_path: Path) -> None:
    shared = Path("/dev/shm")
    if shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("this host has no second file system to write on")
    source = tmp_path / "layer"
    source.write_bytes(b"x" * 3_000_000)
    target = shared / f"insula-{os.getpid()}-layer"
    try:
        link_layer(source, target)
        assert target.read_bytes() == source.read_bytes()
        assert target.stat().st_mode & 0o777 == 0o444
        with pytest.raises(FileExistsError):
            link_layer(source, target)
        assert target.exists()
    finally:
        target.unlink(missing_ok=True)


def test_a_link_in_a_layers_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "layer").symlink_to("secret")
    with pytest.raises(DamagedRecord, match="is not a file"):
        link_layer(tmp_path / "layer", tmp_path / "link")
    assert not (tmp_path / "link").exists()


def test_a_missing_layer_is_told(tmp_path: Path) -> None:
    with pytest.raises(DamagedRecord) as error:
        link_layer(tmp_path / "layer", tmp_path / "link")
    assert error.value.code == "layer_missing"


def test_who_misses_a_layer_is_told_who_has_it_or_that_nobody_does(tmp_path: Path) -> None:
    def lack(name: str) -> str:
        with pytest.raises(DamagedRecord, match="is missing") as error:
            require_layers(tmp_path / "machines" / name, ["layers/0123abcd-root.qcow2"])
        return error.value.hint or ""

    (tmp_path / "machines/web/layers").mkdir(parents=True)
    assert lack("web").startswith("nothing here has it any more")
    assert lack("web").endswith("insula delete --force web")
    (tmp_path / "images/0123abcd4567").mkdir(parents=True)
    (tmp_path / "images/0123abcd4567/root.qcow2").touch()
    layer = "layers/0123abcd-root.qcow2"
    assert lack("web") == (
        f"the same file is still here, so: ln -f {tmp_path}/images/0123abcd4567/root.qcow2 {tmp_path}/machines/web/{layer}"
    )
    (tmp_path / "machines/db/layers").mkdir(parents=True)
    (tmp_path / "machines/db" / layer).touch()
    (tmp_path / "images/0123abcd4567/root.qcow2").unlink()
    assert f" {tmp_path}/machines/db/{layer} " in lack("web")


def test_an_overlay_names_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "head.qcow2"
    create_overlay(path, 1 << 30)
    found = info(path)
    assert (found["format"], found["virtual-size"]) == ("qcow2", 1 << 30)
    assert "backing-filename" not in found
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        create_overlay(path, 1 << 30)
    assert info(path) == found


@pytest.mark.parametrize("size", [512, (1 << 30) + 512, 10 << 30, 64 << 40])
def test_qemu_finds_no_fault_with_an_overlay_of_any_size(tmp_path: Path, size: int) -> None:
    path = tmp_path / "head.qcow2"
    create_overlay(path, size)
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", path], check=True)
    assert info(path)["virtual-size"] == size


def test_an_overlay_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        create_overlay(tmp_path / "head.qcow2", 1 << 62)
    with pytest.raises(FileNotFoundError):
        create_overlay(tmp_path / "absent" / "head.qcow2", 1 << 30)
    assert list(tmp_path.iterdir()) == []


def test_a_raw_disk_is_never_taken_for_another_format(tmp_path: Path) -> None:
    """A guest's first bytes may look like a qcow2 header that names a file of the host."""
    secret, raw, layer = tmp_path / "secret", tmp_path / "raw", tmp_path / "layer"
    secret.write_bytes(b"secret" * 1000)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", secret, "-F", "raw", raw, "1M"], check=True)
    raw.chmod(0o644)  # as a build leaves it, whatever umask there is
    raw_to_layer(raw, layer)
    found = info(layer)
    assert "backing-filename" not in found
    assert found["virtual-size"] == -(-raw.stat().st_size // 512) * 512
    assert layer.stat().st_mode & 0o777 == 0o444
