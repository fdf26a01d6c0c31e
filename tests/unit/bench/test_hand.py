"""The machine by hand: it must have the hardware that Insula's own board has, or the comparison says nothing."""

from __future__ import annotations

import itertools
import re
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bench import hand_exec
from bench.hand import qemu_command
from insula.engines.base import DirectBoot, DiskPlan, LaunchPlan, LayerFile, NicPlan
from insula.engines.qemu.board import build_board
from insula.engines.qemu.cmdline import build_argv
from insula.engines.qemu.probe import EMULATED_CPU
from insula.guest import wire
from insula.images.record import Image
from insula.model.spec import MachineSpec
from insula.store.machines import BoardRecord

FOLDER = Path("/machines/web")
BOARD = BoardRecord("pc-q35-10.0", EMULATED_CPU, "10.0.2", "tcg")
# Names of things, and what goes with the way a machine is started; all else about a device must be the same.
NAMES = {"id", "mac", "guid", "serial", "drive", "chardev", "netdev", "name"}


class Everything(dict[str, int]):
    """Any key has a descriptor."""

    def __missing__(self, key: str) -> int:
        return 7


def commands() -> tuple[list[str], list[str]]:
    spec = MachineSpec()
    plan = LaunchPlan(
        name="web",
        folder=FOLDER,
        uuid="11111111-2222-4333-8444-555555555555",
        generation="66666666-7777-4888-9999-000000000000",
        cpus=spec.cpus,
        memory=spec.memory,
        board=BOARD,
        boot=DirectBoot(FOLDER / "vmlinuz", FOLDER / "initrd", "quiet"),
        disks=(DiskPlan("disk0", LayerFile(FOLDER / "head"), (LayerFile(FOLDER / "layer"),), "root", unsafe=True),),
        nics=(NicPlan("52:54:00:00:00:01"),),
    )
    return build_argv(build_board(plan), Everything(), "qemu"), qemu_command(FOLDER, hand_image(), BOARD)


def hand_image() -> Image:
    return cast(Image, SimpleNamespace(boot="direct", kernel=FOLDER / "vmlinuz", initrd=FOLDER / "initrd", cmdline="quiet"))


def values(words: list[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(words) if name == option]


def devices(words: list[str]) -> list[tuple[str, list[str]]]:
    found = []
    for value in values(words, "-device"):
        kind, *properties = value.split(",")
        kept = {each for each in properties if each.partition("=")[0] not in NAMES}
        if kind == "virtio-net-pci":  # behind passt it can do none of that anyway
            kept = {each for each in kept if not each.endswith("=off")}
        found.append((kind, sorted(kept - {"werror=stop", "rerror=report"})))
    return found


@pytest.mark.parametrize("option", ["-machine", "-accel", "-cpu", "-smp", "-m", "-append", "-sandbox"])
def test_both_are_the_same_computer(option: str) -> None:
    ours, theirs = commands()
    assert values(ours, option) == values(theirs, option) != []


def test_both_have_the_same_devices_at_the_same_places() -> None:
    ours, theirs = (devices(words) for words in commands())
    bare = ("virtserialport", ["bus=serial0.0", "nr=2"])  # the one more that copying is compared with
    assert theirs.count(bare) == 1
    assert sorted(ours) == sorted(each for each in theirs if each != bare)


def test_exec_by_hand_speaks_the_wire() -> None:
    wanted = hand_exec._field(hand_exec._VERB, b"exec") + hand_exec._field(hand_exec._ARGV, b"true")
    assert wanted == wire.encode_fields([("verb", "exec"), ("argv", ("true",))])
    assert hand_exec._frame(hand_exec._OPEN, wanted) == wire.encode_frame(wire.Frame(wire.OPEN, 1, wanted))
    answer: dict[int, Any] = hand_exec._fields(wire.encode_fields([("code", 3)]))
    assert struct.unpack("<Q", answer[hand_exec._CODE]) == (3,)
    assert re.fullmatch(rb"IN\x01\x00\x01\x00\x00\x00.{4}", hand_exec._frame(1, b"")) is not None
