"""The machine in libvirt's hands: it must have the hardware of the one by hand, or the comparison says nothing."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from bench.bars import BARS, _silence
from bench.hand import qemu_command
from bench.libvirt import description
from bench.pairs import Pairs
from insula.engines.qemu.probe import EMULATED_CPU
from insula.images.record import Image
from insula.store.machines import BoardRecord

FOLDER = Path('/machines/"web" & <db>')
BOARD = BoardRecord("pc-q35-10.0", EMULATED_CPU, "10.0.2", "tcg")
IMAGE = SimpleNamespace(boot="direct", kernel=FOLDER / "vmlinuz", initrd=FOLDER / "initrd", cmdline='quiet "a & b"')
ARGUMENT = "{http://libvirt.org/schemas/domain/qemu/1.0}arg"
# What libvirt calls a device: what QEMU does.
DEVICES = {
    "disk": "virtio-blk-pci",
    "memballoon": "virtio-balloon-pci",
    "pcie-root-port": "pcie-root-port",
    "rng": "virtio-rng-pci",
    "virtio-serial": "virtio-serial-pci",
}


def machine(board: BoardRecord = BOARD) -> Element:
    return ElementTree.fromstring(description(FOLDER, cast(Image, IMAGE), board, 512 << 20))


def by_hand(option: str) -> list[str]:
    words = qemu_command(FOLDER, cast(Image, IMAGE), BOARD)
    return [value for name, value in itertools.pairwise(words) if name == option]


def told(option: str) -> list[str]:
    words = [each.attrib["value"] for each in machine().iter(ARGUMENT)]
    return [value for name, value in itertools.pairwise(words) if name == option]


def text(path: str) -> str | None:
    return machine().findtext(path)


def placed_by_hand(value: str) -> tuple[str, str] | None:
    """What is on the first bus, and where."""
    kind, *pairs = value.split(",")
    properties = dict(pair.split("=", 1) for pair in pairs)
    return (properties["addr"], kind) if properties.get("bus") == "pcie.0" else None


def placed(device: Element) -> tuple[str, str] | None:
    """The same of what libvirt is told of, in QEMU's words."""
    address = device.find("address[@type='pci']")
    if address is None:
        return None
    port = device.get("model") == "pcie-root-port"
    name = device.tag if device.tag != "controller" else device.get("model" if port else "type", "")
    slot, function = (int(address.attrib[each], 16) for each in ("slot", "function"))
    return (f"{slot:#x}.{function}" if port else f"{slot:#x}", DEVICES[name])


def test_both_have_the_same_devices_at_the_same_places() -> None:
    ours = [*map(placed, machine().findall("devices/*")), *map(placed_by_hand, told("-device"))]
    theirs = map(placed_by_hand, by_hand("-device"))
    assert sorted(filter(None, ours)) == sorted(filter(None, theirs)) != []


def test_every_virtio_device_is_as_modern_as_by_hand() -> None:
    modern = [device.get("model") for device in machine().findall("devices/*") if "virtio" in str(device.get("model"))]
    assert modern == ["virtio-non-transitional"] * sum("disable-legacy=on" in value for value in by_hand("-device"))


def test_both_are_the_same_computer() -> None:
    kind = machine().find("os/type")
    assert kind is not None
    assert by_hand("-machine")[0].split(",")[0] == kind.get("machine")
    assert by_hand("-cpu") == told("-cpu")
    assert by_hand("-m") == [f"size={int(text('memory') or 0) >> 20}M,{told('-m')[0]}"]
    assert by_hand("-append") == [text("os/cmdline")]
    assert [by_hand("-kernel"), by_hand("-initrd")] == [[text("os/kernel")], [text("os/initrd")]]


def test_the_agent_has_the_same_port() -> None:
    port = machine().find("devices/channel/address")
    target = machine().find("devices/channel/target")
    assert port is not None
    assert target is not None
    (wanted,) = [value for value in by_hand("-device") if "chardev=agent" in value]
    assert wanted.endswith(f"nr={port.get('port')},chardev=agent,name={target.get('name')}")


@pytest.mark.parametrize(("accelerator", "kind", "translates"), [("tcg", "qemu", True), ("kvm", "kvm", False)])
def test_libvirt_is_told_what_runs_the_guest(accelerator: str, kind: str, translates: bool) -> None:
    found = machine(BoardRecord("pc-q35-10.0", "host", "10.0.2", accelerator))
    assert found.get("type") == kind
    assert (found.find("features/tcg") is not None) == translates


def test_a_row_says_whom_it_is_compared_with() -> None:
    row = _silence(BARS["pause-libvirt"], "2G-1-booted", Pairs((0.010,) * 3, (0.200,) * 3), "libvirt")
    assert (row.name, row.met, row.theirs) == ("pause-libvirt-2G-1-booted", True, "200 ms")
    assert row.measured.endswith("libvirt 200 ms")
