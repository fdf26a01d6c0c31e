"""A full disk under a merge of layers and under the import of a snapshot: the machine goes on, the half thing is gone, a clear
error; with room it succeeds."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import insula
from insula.model.units import KIB, MIB
from insula.store.machines import read_machine
from tests.faults.rewound import chain_of, left_over
from tests.faults.small_disk import SmallDisk, home_on_small_disk

pytestmark = [pytest.mark.root, pytest.mark.guest, pytest.mark.limit(120)]

_SHAPE = ("--memory", "128M", "--network", "none")
_LAYERS = 6
_BOUND = 3  # layers; more are merged
_EACH = 3 * MIB  # what is in each layer, so that a merged one needs more
# Room that is left, in bytes.
_ROOMS = [0, 64 * KIB, 2 * MIB, 5 * MIB, 9 * MIB]


@pytest.fixture
def disk(tmp_path: Path, home: Path, tiny: str) -> Iterator[SmallDisk]:
    with home_on_small_disk(tmp_path / "small", "300m", home) as disk:
        yield disk


def _depth(disk: SmallDisk) -> int:
    return len(read_machine(disk.seen / "machines/big").disks[0].layers)


def _make_deep(disk: SmallDisk) -> None:
    """The machine `big` runs, with more layers than there are to be."""
    disk.do("create", "--name", "big", *_SHAPE, "tiny")
    folder = disk.seen / "machines/big"
    while (depth := _depth(disk)) < _LAYERS:
        # Beyond what its file system uses: what is there is nobody's.
        words = ["-c", f"write -P {depth} {600 * MIB + depth * _EACH // 2} {_EACH}"]
        subprocess.run(["qemu-io", *words, chain_of(folder)], check=True, stdout=subprocess.DEVNULL)
        disk.do("snapshot", "create", f"big@s{depth}")
        disk.do("snapshot", "delete", f"big@s{depth}")
    disk.do("start", "--cold", "big")


@pytest.mark.full
def test_a_merge_that_finds_no_room_leaves_the_machine_as_it_was(disk: SmallDisk) -> None:
    _make_deep(disk)
    told = {"VICTIM_ID": read_machine(disk.seen / "machines/big").id, "VICTIM_BOUND": str(_BOUND)}
    refused = 0
    for room in _ROOMS:
        disk.fill(leave=room)
        before = read_machine(disk.seen / "machines/big").disks
        status, code = disk.victim("merge", "big", **told)
        refused += status != 0
        if status:
            assert (status, code) == (3, "no_space")
            assert read_machine(disk.seen / "machines/big").disks == before
        disk.empty()
        if disk.list()["big"]["reason"] == "no-space":  # the guest wrote by itself, as one does now and then, and waits for room
            disk.do("resume", "big")
        assert disk.do("exec", "big", "--", "echo", "fine") == b"fine\n"
        assert left_over(disk.seen) == []
        if status == 0:
            break
    assert refused >= 2, "the disk was hardly ever full"
    assert disk.victim("merge", "big", **told) == (0, "")
    assert _depth(disk) == _BOUND
    disk.do("stop", "--force", "big")
    patterns = [
        f"read -P {_LAYERS - 1} {600 * MIB + (_LAYERS - 1) * _EACH // 2} {_EACH}",
        f"read -P 1 {600 * MIB + _EACH // 2} 64k",
    ]
    for words in patterns:
        shown = subprocess.run(
            ["qemu-io", "-r", "-c", words, chain_of(disk.seen / "machines/big")], check=True, capture_output=True
        )
        assert b"Pattern verification failed" not in shown.stdout


@pytest.fixture(scope="module")
def exported(home: Path, tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot with memory, as one file."""
    path = tmp_path_factory.mktemp("exported") / "snapshot"
    with insula.connect(home).run(tiny, name="", memory="128M", network="none", cold=True) as machine:
        machine.exec("sh", "-c", "echo memo > /run/memo", check=True)
        machine.snapshot("one").export(path)
    return path


@pytest.mark.full
def test_an_import_for_which_there_is_no_room_is_refused_first(disk: SmallDisk, exported: Path) -> None:
    disk.do("create", "--name", "old", *_SHAPE, "tiny")
    for room in _ROOMS:
        disk.fill(leave=room)
        with disk.begun("snapshot", "import", "--json", "-", "new", fed=True) as child:
            errors = child.communicate(exported.read_bytes(), timeout=60)[1]
        error = json.loads(errors.splitlines()[-1])
        assert (child.returncode, error["code"]) == (1, "no_space")
        assert error["hint"]
        disk.empty()
        assert sorted(os.listdir(disk.seen / "machines")) == ["old"]
        assert left_over(disk.seen) == []


def test_an_import_under_which_the_disk_fills_up_leaves_nothing(disk: SmallDisk, exported: Path) -> None:
    content = exported.read_bytes()
    disk.do("create", "--name", "old", *_SHAPE, "tiny")
    with disk.begun("snapshot", "import", "--json", "-", "new", fed=True) as child:
        assert child.stdin is not None
        child.stdin.write(content[: len(content) // 2])
        child.stdin.flush()  # most of this it has read: no pipe holds so much
        disk.fill()
        errors = child.communicate(content[len(content) // 2 :], timeout=60)[1]
    assert b"Traceback" not in errors, errors.decode()
    error = json.loads(errors.splitlines()[-1])
    assert (child.returncode, error["code"]) == (1, "no_space"), error
    disk.empty()
    assert sorted(os.listdir(disk.seen / "machines")) == ["old"]
    assert left_over(disk.seen) == []
    with disk.begun("snapshot", "import", "--json", "-", "new", fed=True) as child:
        assert child.communicate(content, timeout=60)[1] == b""
    assert child.returncode == 0
    disk.do("snapshot", "restore", "--discard", "new@one")
    assert disk.do("exec", "new", "--", "cat", "/run/memo") == b"memo\n"
