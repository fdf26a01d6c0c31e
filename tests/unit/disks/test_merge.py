"""Layers that become one mean the same upon what is below them; what comes from elsewhere is looked at first."""

from __future__ import annotations

import json
import random
import subprocess
import uuid
from pathlib import Path

import pytest

from insula.disks.inspect import check_header, check_layer
from insula.disks.merge import merge_layers
from insula.disks.overlays import create_overlay
from insula.disks.qcow2 import empty_image
from insula.errors import DamagedRecord

SIZE = 16 << 20
PAGE = 4096


def chain(*paths: Path) -> str:
    disk: dict[str, object] | None = None
    for path in paths:
        disk = {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}, "backing": disk}
    return "json:" + json.dumps(disk)


def write(commands: list[str], *paths: Path) -> None:
    words = [word for command in commands for word in ("-c", command)]
    subprocess.run(["qemu-io", *words, chain(*paths)], check=True, stdout=subprocess.DEVNULL)


def raw(tmp_path: Path, *paths: Path) -> bytes:
    target = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", chain(*paths), target], check=True)
    return target.read_bytes()


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    """Five layers full of data, zeros written explicitly, and discarded parts, one over the other; the lowest is smaller."""
    chance = random.Random(4)
    found: list[Path] = []
    for number in range(5):
        path = tmp_path / f"layer{number}"
        size = SIZE if number else SIZE // 2
        create_overlay(path, size)
        found.append(path)
        commands = []
        for _ in range(25):
            start, length = chance.randrange(size // PAGE - 20) * PAGE, chance.randrange(1, 20) * PAGE
            kinds = [f"write -P {chance.randrange(1, 255)}", "write -z", "write -z -u", "discard"]
            commands.append(f"{chance.choice(kinds)} {start} {length}")
        write(commands, *found)
    for path in found:
        path.chmod(0o444)
    return found


@pytest.mark.limit(20)
def test_merged_layers_mean_the_same(tmp_path: Path, layers: list[Path]) -> None:
    before = raw(tmp_path, *layers)
    merged = tmp_path / "merged"
    merge_layers(layers[:1], layers[1:4], merged, SIZE, str(uuid.uuid4()))
    assert raw(tmp_path, layers[0], merged, layers[4]) == before
    assert raw(tmp_path, *layers) == before
    subprocess.run(["qemu-img", "check", "-q", merged], check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layer0", "layer1", "layer2", "layer3", "layer4", "merged", "raw"]
    assert merged.stat().st_mode & 0o777 == 0o600


@pytest.mark.limit(20)
def test_zeros_go_on_hiding_what_is_below(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("below", "zeros", "more")]
    for path in paths:
        create_overlay(path, SIZE)
    write(["write -P 7 0 2M"], paths[0])
    write(["write -z 0 64k", "write -z -u 128k 64k"], *paths[:2])
    write(["write -P 9 1M 64k"], *paths)
    for path in paths:
        path.chmod(0o444)
    merge_layers(paths[:1], paths[1:], tmp_path / "merged", SIZE, str(uuid.uuid4()))
    found = raw(tmp_path, paths[0], tmp_path / "merged")
    assert found[: 64 << 10] == bytes(64 << 10)
    assert found[64 << 10 : 128 << 10] == b"\7" * (64 << 10)
    assert found[128 << 10 : 192 << 10] == bytes(64 << 10)
    assert found[1 << 20 : (1 << 20) + (64 << 10)] == b"\11" * (64 << 10)


@pytest.mark.limit(20)
def test_nothing_is_left_of_a_merge_that_fails(tmp_path: Path, layers: list[Path]) -> None:
    layers[2].chmod(0o600)
    layers[2].write_bytes(b"no qcow2 at all" * 1000)
    layers[2].chmod(0o444)
    with pytest.raises(DamagedRecord) as refused:
        merge_layers(layers[:1], layers[1:4], tmp_path / "merged", SIZE, str(uuid.uuid4()))
    assert refused.value.code == "bad_layer"
    assert not list(tmp_path.glob("merged*"))


@pytest.mark.limit(20)
def test_a_layer_that_names_a_secret_file_shows_nothing_of_it(tmp_path: Path, layers: list[Path]) -> None:
    """What a taken-over QEMU could do: leave a header behind that names a file of the host."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"SECRET" * 20_000)
    hostile = tmp_path / "hostile"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", hostile, str(SIZE)], check=True)
    hostile.chmod(0o444)
    merge_layers(layers[:1], [hostile, layers[1]], tmp_path / "merged", SIZE, str(uuid.uuid4()))
    assert b"SECRET" not in (tmp_path / "merged").read_bytes()
    assert b"SECRET" not in raw(tmp_path, layers[0], tmp_path / "merged")


@pytest.mark.limit(20)
def test_a_good_layer_is_accepted_and_others_are_not(tmp_path: Path, layers: list[Path]) -> None:
    machine = str(uuid.uuid4())
    check_layer(layers[2], SIZE, machine)
    with pytest.raises(DamagedRecord):
        check_layer(layers[2], SIZE // 2, machine)  # larger than the disk
    damaged = tmp_path / "damaged"
    content = bytearray(layers[2].read_bytes())
    content[3 << 16 : (3 << 16) + 8] = b"\xff" * 8  # where the first level of tables begins
    damaged.write_bytes(content)
    damaged.chmod(0o444)
    with pytest.raises(DamagedRecord) as refused:
        check_layer(damaged, SIZE, machine)
    assert refused.value.code == "bad_layer"
    for words in (["-b", "/etc/passwd", "-F", "raw"], ["-o", f"data_file={tmp_path / 'data'}"]):
        hostile = tmp_path / "hostile"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *words, hostile, str(SIZE)], check=True)
        with pytest.raises(DamagedRecord):
            check_layer(hostile, SIZE, machine)
        hostile.unlink()


def header(**changes: tuple[int, bytes]) -> bytes:
    content = bytearray(empty_image(SIZE)[0][:104])
    for at, value in changes.values():
        content[at : at + len(value)] = value
    return bytes(content)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        header()[:100],
        header(magic=(0, b"QFI\xfa")),
        header(version=(4, b"\0\0\0\4")),
        header(backing=(8, b"\0\0\0\0\0\0\1\0")),
        header(backing_length=(16, b"\0\0\0\1")),
        header(clusters=(20, b"\0\0\0\40")),
        header(size=(24, b"\xff" * 8)),
        header(no_size=(24, bytes(8))),
        header(encrypted=(32, b"\0\0\0\2")),
        header(dirty=(72, b"\0\0\0\0\0\0\0\1")),
        header(corrupt=(72, b"\0\0\0\0\0\0\0\2")),
        header(data_file=(72, b"\0\0\0\0\0\0\0\4")),
        header(unknown=(72, b"\x80\0\0\0\0\0\0\0")),
    ],
)
def test_headers_that_are_refused(head: bytes) -> None:
    check_header(header(), SIZE)
    with pytest.raises(DamagedRecord) as refused:
        check_header(head, SIZE)
    assert refused.value.code == "bad_layer"
