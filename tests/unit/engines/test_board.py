"""The board and QEMU's arguments: golden files, and what must hold for every board.

After a wanted change: INSULA_WRITE_GOLDEN=1 ./test tests/unit/engines, then read the difference.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.engines.base import DirectBoot, DiskBoot, DiskPlan, LaunchPlan, LayerFile, LoadPlan, NicPlan
from insula.engines.qemu.board import NIC_PORTS, RESERVED, Board, build_board
from insula.engines.qemu.cmdline import build_argv
from insula.engines.qemu.probe import EMULATED_CPU
from insula.errors import UsageError
from insula.model.shape import Dimm
from insula.model.units import GIB, MIB
from insula.store.machines import BoardRecord

GOLDEN = Path(__file__).parent / "golden"
FOLDER = Path("/machines/web")

TINY = DirectBoot(FOLDER / "vmlinuz", FOLDER / "initrd", "console=ttyS0 quiet")


def plan(version: str, accelerator: str = "tcg", **changes: object) -> LaunchPlan:
    cpu = EMULATED_CPU if accelerator == "tcg" else "host"
    values: dict = {
        "name": "web",
        "folder": FOLDER,
        "uuid": "11111111-2222-4333-8444-555555555555",
        "generation": "66666666-7777-4888-9999-000000000000",
        "cpus": 1,
        "memory": 512 * MIB,
        "board": BoardRecord(f"pc-q35-{version}", cpu, f"{version}.2", accelerator),
        "boot": TINY,
        "disks": (disk(0, layers=1),),
        "nics": (NicPlan("52:54:00:00:00:01"),),
    }
    return LaunchPlan(**{**values, **changes})


def disk(index: int, layers: int = 0, unsafe: bool = False) -> DiskPlan:
    below = tuple(LayerFile(FOLDER / f"layers/{number}.qcow2") for number in range(layers))
    return DiskPlan(f"disk{index}", LayerFile(FOLDER / f"disks/{index}.qcow2"), below, serial=f"d{index}", unsafe=unsafe)


CASES = {
    "direct-qemu-8.2": plan("8.2"),
    "direct-qemu-10.0": plan("10.0"),
    "disk-bios-qemu-8.2": plan("8.2", boot=DiskBoot()),
    "disk-bios-qemu-10.0": plan("10.0", boot=DiskBoot()),
    "uefi-kvm-many-qemu-8.2": plan(
        "8.2",
        "kvm",
        cpus=6,
        memory=8 * GIB,
        boot=DiskBoot("uefi", FOLDER / "firmware/vars.fd"),
        disks=(disk(0, layers=3), disk(1, unsafe=True), disk(2)),
        nics=tuple(NicPlan(f"52:54:00:00:00:0{index}") for index in range(4)),
    ),
    "taps-qemu-10.0": plan(
        "10.0",
        board=BoardRecord("pc-q35-10.0", EMULATED_CPU, "10.0.2", "tcg", offloads=True),
        nics=(NicPlan("52:54:00:00:00:01", tap=5), NicPlan("52:54:00:00:00:02", tap=6, slot=2)),
    ),
    "vga-tpm-qemu-10.0": plan("10.0", boot=DiskBoot(), display="vga", tpm=FOLDER / "tpm/0"),
    # A fork of a machine that had 2 CPUs, let go of one, and got another and memory twice; only the first piece is in the file.
    "pieces-qemu-10.0": plan(
        "10.0",
        cpus=2,
        load=LoadPlan(FOLDER / "origin/state", FOLDER / "origin/memory", 1 << 20, pieces={"0a1b2c3d": 600 << 20}),
        present=(0, 2),
        dimms=(Dimm("0a1b2c3d", 0, 256 * MIB, 4 * GIB), Dimm("4e5f6071", 3, 128 * MIB)),
    ),
    "bare-qemu-10.0": plan("10.0", boot=DirectBoot(FOLDER / "vmlinuz"), disks=(), nics=()),
}


def argv(case: LaunchPlan) -> list[str]:
    board = build_board(case)
    return build_argv(board, numbers(board), "/usr/bin/qemu-system-x86_64")


def numbers(board: Board) -> dict[str, int]:
    keys = (
        [file.key for file in board.files]
        + [channel.key for channel in board.channels]
        + [netdev.key for netdev in board.netdevs]
    )
    return {key: number for number, key in enumerate(keys, start=10)}


def lines(words: list[str]) -> str:
    """An option and its value on one line."""
    text = words[0]
    for word in words[1:]:
        text += f"\n{word}" if word.startswith("-") else f" {word}"
    return text + "\n"


@pytest.mark.parametrize("name", CASES)
def test_arguments_are_as_written_down(name: str) -> None:
    path = GOLDEN / f"{name}.txt"
    text = lines(argv(CASES[name]))
    if os.environ.get("INSULA_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_there_is_no_golden_file_without_a_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(CASES)


@st.composite
def plans(draw: st.DrawFn) -> LaunchPlan:
    return plan(
        draw(st.sampled_from(["8.2", "10.0"])),
        draw(st.sampled_from(["tcg", "kvm"])),
        cpus=draw(st.integers(1, 64)),
        memory=draw(st.integers(96, 1 << 20)) * MIB,
        disks=tuple(disk(index, draw(st.integers(0, 15)), draw(st.booleans())) for index in range(draw(st.integers(0, 5)))),
        nics=tuple(NicPlan(f"52:54:00:00:00:0{index}") for index in range(draw(st.integers(0, 4)))),
        tpm=draw(st.sampled_from([None, FOLDER / "tpm/0"])),
        display=draw(st.sampled_from(["none", "vga"])),
        boot=draw(st.sampled_from([TINY, DiskBoot(), DiskBoot("uefi", Path("/vars"))])),
    )


@given(plans())
def test_no_two_parts_share_a_place_and_reserved_places_stay_free(case: LaunchPlan) -> None:
    places = [
        (part.properties["bus"], str(part.properties["addr"])) for part in build_board(case).devices if "addr" in part.properties
    ]
    assert len(places) == len(set(places))
    root = {int(address.split(".")[0], 16) for bus, address in places if bus == "pcie.0"}
    assert not root & set(RESERVED)
    assert 0x1F not in root


@given(plans())
def test_hardware_does_not_move_when_something_is_added(case: LaunchPlan) -> None:
    bare = {
        part.properties["id"]: part for part in build_board(plan("10.0", disks=(), nics=(), generation=case.generation)).devices
    }
    full = {part.properties["id"]: part for part in build_board(case).devices}
    assert bare.items() <= full.items()


@given(plans())
def test_no_header_is_believed_and_only_heads_are_written(case: LaunchPlan) -> None:
    nodes = {node["node-name"]: node for node in build_board(case).nodes}
    for each in case.disks:
        chain = [nodes[f"{each.name}-{index}"] for index in range(len(each.layers) + 1)]
        assert [node["backing"] for node in chain] == [None, *(node["node-name"] for node in chain[:-1])]
        assert [node["read-only"] for node in chain] == [True] * len(each.layers) + [False]
        assert nodes[each.name]["driver"] == "throttle"
        assert nodes[each.name]["file"] == chain[-1]["node-name"]
        assert all(("cache" in node) == each.unsafe for node in chain)


@given(plans())
def test_files_come_by_descriptor_alone(case: LaunchPlan) -> None:
    words = argv(case)
    for word in words:
        assert str(FOLDER) not in word
    for node in (json.loads(words[index + 1]) for index, word in enumerate(words) if word == "-blockdev"):
        if node["driver"] == "file":
            assert node["filename"].startswith("/dev/fdset/")


@given(plans())
def test_there_is_room_to_grow(case: LaunchPlan) -> None:
    board = build_board(case)
    processors = {key: int(str(value)) for key, value in board.processors.items()}
    assert processors["maxcpus"] == processors["sockets"] * processors["cores"] * processors["threads"]
    assert processors["maxcpus"] >= 2 * case.cpus
    most = int(str(board.memory["maxmem"]).removesuffix("M")) * MIB
    assert most >= case.memory + 16 * GIB


def test_more_than_the_board_holds_is_refused() -> None:
    with pytest.raises(UsageError, match="5 disks and 4 network cards"):
        build_board(plan("10.0", disks=tuple(disk(index) for index in range(6))))
    with pytest.raises(UsageError):
        build_board(plan("10.0", nics=tuple(NicPlan("52:54:00:00:00:01") for _ in range(len(NIC_PORTS) + 1))))


def test_a_comma_in_a_name_starts_no_new_option() -> None:
    words = argv(plan("10.0", name="a,debug-threads=off"))
    assert "guest=a,,debug-threads=off,debug-threads=on" in words
