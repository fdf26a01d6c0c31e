"""What is on the board. Pure: a plan goes in, a description of every part comes out; docs/board.md shows the same table.

The board is q35 and complete from the start: the places below never move, so that a snapshot taken today loads tomorrow,
and a guest never meets its hardware at another address::

    00      host bridge               08      disk 0
    01      display, if any           09      vsock                (free)
    02      virtio-serial             0a      shared folder        (free)
    03      random numbers            0b      extra memory         (free)
    04      balloon, booted only      0c      IOMMU                (free)
    05      panic notifier            0d      watchdog             (free)
    06      USB: tablet, keys (free)  10.0–7  root ports rp0–rp7: NICs on rp0–rp3, further disks on rp4–rp7
    07      sound            (free)   11, 12  further root ports   (free)
                                      1f      ISA bridge, SATA, SMBus: part of q35

VMGENID and a TPM have no PCI address; the serial console is the ISA port COM1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from insula.engines.base import DirectBoot, DiskBoot, DiskPlan, LaunchPlan, NicPlan
from insula.engines.qemu.pieces import block_name, cpu_place, cpu_type, dimm_place
from insula.errors import UsageError
from insula.model.shape import MEMORY_PLACES, most_cpus, most_memory
from insula.model.units import MIB

SLOT_DISPLAY: Final = 0x01
SLOT_SERIAL: Final = 0x02
SLOT_RANDOM: Final = 0x03
SLOT_BALLOON: Final = 0x04
SLOT_PANIC: Final = 0x05
SLOT_DISK: Final = 0x08
SLOT_ROOT_PORTS: Final = 0x10
# Each root port costs the guest about 13 ms of boot time under TCG: enough to plug into, not more.
ROOT_PORTS: Final = 8
NIC_PORTS: Final = (0, 1, 2, 3)
DISK_PORTS: Final = (4, 5, 6, 7)

RESERVED: Final[Mapping[int, str]] = {
    0x06: "USB controller (tablet, keyboard)",
    0x07: "sound",
    0x09: "vsock",
    0x0A: "shared folder",
    0x0B: "extra memory (virtio-mem)",
    0x0C: "IOMMU",
    0x0D: "watchdog",
    0x11: "further root ports",
    0x12: "further root ports",
}

# Inside the jail's root; isolation/roots.py puts them there.
FIRMWARE_CODE: Final = "/usr/share/OVMF/OVMF_CODE_4M.fd"
FIRMWARE_VARIABLES: Final = "/usr/share/OVMF/OVMF_VARS_4M.fd"
JAIL_KERNEL: Final = "/boot/kernel"
JAIL_INITRD: Final = "/boot/initrd"
JAIL_MEMORY: Final = "/boot/memory"

AGENT_PORT: Final = "org.insula.agent"

# Between these bounds three times what it has; an unlimited multiple would leave the addresses of small CPUs.
# A quarter of the default and still more than a Debian boot translates; the default is up to 1 GiB.
_TRANSLATION_CACHE_MIB: Final = 128


class Part(msgspec.Struct, frozen=True):
    """One ``-object`` or ``-device``: its type and its properties, in QEMU's own words."""

    kind: str
    properties: Mapping[str, object]


class File(msgspec.Struct, frozen=True):
    """A file QEMU is handed open; ``key`` names its descriptor. ``set`` is the number of its descriptor set in QEMU."""

    key: str
    set: int
    node: str


class Channel(msgspec.Struct, frozen=True):
    """A character device on a socket that QEMU is handed: listening, or already connected."""

    id: str
    key: str
    listening: bool = False


class Netdev(msgspec.Struct, frozen=True):
    """What is behind a network card: a tap, or passt at the other end of a connection; ``key`` names the descriptor."""

    id: str
    key: str
    tap: bool


class Board(msgspec.Struct, frozen=True):
    """Everything on one machine's board. Descriptors appear as keys; cmdline.py puts the numbers in."""

    name: str
    uuid: str
    machine: Mapping[str, object]
    accelerator: Mapping[str, object]
    cpu: str
    processors: Mapping[str, object]
    memory: Mapping[str, object]
    boot: tuple[tuple[str, str], ...]
    loads: bool
    files: tuple[File, ...]
    nodes: tuple[Mapping[str, Any], ...]
    objects: tuple[Part, ...]
    channels: tuple[Channel, ...]
    monitors: tuple[str, ...]
    netdevs: tuple[Netdev, ...]
    devices: tuple[Part, ...]
    tpm: str | None = None  # the channel to it


def build_board(plan: LaunchPlan, places: Mapping[str, str] = {}) -> Board:
    """The board of ``plan``. ``places``: where the files are that a jail has at JAIL_KERNEL and so on, if not there.

    Raises UsageError (``too_many_devices``) when it asks for more than there are places.
    """
    if len(plan.disks) > 1 + len(DISK_PORTS) or len(plan.nics) > len(NIC_PORTS):
        raise UsageError(
            f"the board has places for {1 + len(DISK_PORTS)} disks and {len(NIC_PORTS)} network cards", code="too_many_devices"
        )
    files: list[File] = []
    nodes: list[Mapping[str, Any]] = []
    for disk in plan.disks:
        _chain(disk, files, nodes)
    firmware = _firmware(plan.boot, files, nodes)
    return Board(
        name=plan.name,
        uuid=plan.uuid,
        machine={"type": plan.board.machine, **_MACHINE, "mem-merge": plan.mergeable, **firmware},
        accelerator=_accelerator(plan, files),
        cpu=plan.board.cpu,
        processors=_processors(plan),
        memory=_memory(plan.memory),
        boot=_boot(plan.boot, places),
        loads=plan.load is not None,
        files=tuple(files),
        nodes=tuple(nodes),
        objects=(
            *_backends(plan, places.get(JAIL_MEMORY, JAIL_MEMORY)),
            Part("rng-builtin", {"id": "rng0"}),
            *(Part("throttle-group", {"id": throttle_group(disk.name)}) for disk in plan.disks),
        ),
        channels=_CHANNELS if plan.tpm is None else (*_CHANNELS, Channel(_TPM, _TPM)),
        monitors=("mon-keeper", "mon-verbs", "mon-readers"),
        netdevs=tuple(
            Netdev(f"net{slot}", f"net{slot}", nic.tap is not None) for slot, nic in zip(nic_slots(plan), plan.nics, strict=True)
        ),
        devices=_devices(plan),
        tpm=None if plan.tpm is None else _TPM,
    )


# Properties that differ from QEMU's defaults: nothing we do not use is emulated, and nothing of the guest lands in core files.
# (Nor are pages shared with other machines behind the guest's back, unless the host's owner says so: ``mem-merge``.)
_MACHINE: Final[Mapping[str, object]] = {
    "memory-backend": "m",
    "smm": False,
    "vmport": False,
    "hpet": False,
    "dump-guest-core": False,
}

_TPM: Final = "tpm"
_CHANNELS: Final = (
    Channel("mon-keeper", "mon-keeper"),
    Channel("mon-verbs", "mon-verbs", listening=True),
    Channel("mon-readers", "mon-readers", listening=True),
    Channel("agent", "agent"),
    Channel("console", "console"),
)


def _accelerator(plan: LaunchPlan, files: list[File]) -> Mapping[str, object]:
    if plan.board.accelerator == "kvm":
        files.append(File("kvm", len(files) + 1, ""))
        return {"accel": "kvm", "device": f"/dev/fdset/{files[-1].set}"}
    if plan.board.accelerator == "tcg":
        return {"accel": "tcg", "thread": "multi", "tb-size": _TRANSLATION_CACHE_MIB}
    return {"accel": plan.board.accelerator}


def _processors(plan: LaunchPlan) -> Mapping[str, object]:
    """The CPUs it boots with share one package; room to grow comes as further packages. Those that are not the first ones come as
    devices (`_pieces`)."""
    most = most_cpus(plan.cpus)
    return {"cpus": _first(plan), "maxcpus": most, "sockets": most // plan.cpus, "cores": plan.cpus, "threads": 1}


def _first(plan: LaunchPlan) -> int:
    """How many CPUs are there without a gap, from number 0 on."""
    present = range(plan.cpus) if plan.present is None else plan.present
    return next((place for place, number in enumerate(present) if place != number), len(present))


def _memory(size: int) -> Mapping[str, object]:
    return {"size": f"{size // MIB}M", "slots": MEMORY_PLACES, "maxmem": f"{most_memory(size) // MIB}M"}


def _backends(plan: LaunchPlan, memory: str) -> Iterator[Part]:
    """A booted machine's memory is its own; one that goes on from a file maps that, and what it writes is its own. So it is with
    each piece that was plugged in."""
    load = plan.load if plan.load is not None and plan.load.memory is not None else None
    yield _backend("m", plan.memory, load.offset if load is not None else None, memory)
    for dimm in plan.dimms:
        yield _backend(block_name(dimm), dimm.size, load.pieces.get(dimm.name) if load is not None else None, memory)


def _backend(name: str, size: int, offset: int | None, memory: str) -> Part:
    """``readonly`` and not ``rom``: QEMU can neither write the file nor punch holes into it, whatever the guest gives back."""
    if offset is None:
        return Part("memory-backend-ram", {"id": name, "size": size})
    place: dict[str, object] = {"mem-path": memory, "offset": offset}
    return Part("memory-backend-file", {"id": name, "size": size, **place, "share": False, "readonly": True, "rom": "off"})


def _pieces(plan: LaunchPlan) -> Iterator[Part]:
    """The CPUs and the memory that were plugged in before."""
    for number in (plan.present or ())[_first(plan) :]:
        yield Part(cpu_type(plan.board.cpu), cpu_place(plan.cpus, number))
    for dimm in plan.dimms:
        yield Part("pc-dimm", dimm_place(dimm))


def _boot(boot: DiskBoot | DirectBoot, places: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    if isinstance(boot, DiskBoot):
        return ()
    words = [("-kernel", places.get(JAIL_KERNEL, JAIL_KERNEL))]
    if boot.initrd is not None:
        words.append(("-initrd", places.get(JAIL_INITRD, JAIL_INITRD)))
    return (*words, ("-append", boot.cmdline))


def _firmware(boot: DiskBoot | DirectBoot, files: list[File], nodes: list[Mapping[str, Any]]) -> Mapping[str, object]:
    if not isinstance(boot, DiskBoot) or boot.firmware == "bios":
        return {}
    nodes.append({"driver": "raw", "node-name": "code", "read-only": True, "file": {"driver": "file", "filename": FIRMWARE_CODE}})
    files.append(File("variables", len(files) + 1, "variables-file"))
    nodes.append({"driver": "file", "node-name": "variables-file", "filename": f"/dev/fdset/{files[-1].set}"})
    nodes.append({"driver": "raw", "node-name": "variables", "file": "variables-file"})
    return {"pflash0": "code", "pflash1": "variables"}


def _chain(disk: DiskPlan, files: list[File], nodes: list[Mapping[str, Any]]) -> None:
    """The nodes of one disk, bottom to top: per file a protocol and a format node, and a throttle node on top of all.

    ``backing`` is always said, also that there is none: no path in a header is ever followed.
    """
    below: str | None = None
    chain = (*disk.layers, disk.head)
    for index, layer in enumerate(chain):
        node = f"{disk.name}-{index}"
        head = index == len(chain) - 1
        files.append(File(node, len(files) + 1, f"{node}-file"))
        common: dict[str, object] = {"read-only": not head, "auto-read-only": False}
        if head:
            common["discard"] = "unmap"
        if disk.unsafe:
            common["cache"] = {"direct": False, "no-flush": True}
        nodes.append({"driver": "file", "node-name": f"{node}-file", "filename": f"/dev/fdset/{files[-1].set}", **common})
        node_format: dict[str, object] = {"driver": layer.format, "node-name": node, "file": f"{node}-file", **common}
        if layer.format == "qcow2":
            node_format["backing"] = below
        if head:
            node_format["detect-zeroes"] = "unmap"
        nodes.append(node_format)
        below = node
    limits = {"driver": "throttle", "node-name": disk.name, "throttle-group": throttle_group(disk.name)}
    nodes.append({**limits, "file": below, "discard": "unmap"})


def throttle_group(disk: str) -> str:
    """What holds the disk called so to its limits."""
    return f"limit-{disk}"


def _devices(plan: LaunchPlan) -> tuple[Part, ...]:
    ports = tuple(_root_port(index) for index in range(ROOT_PORTS))
    fixed = (
        Part("virtio-serial-pci", {"id": "serial0", **_at(SLOT_SERIAL), "max_ports": 8}),
        Part("virtserialport", {"id": "agent0", "bus": "serial0.0", "nr": 1, "chardev": "agent", "name": AGENT_PORT}),
        Part("isa-serial", {"id": "console0", "chardev": "console"}),
        Part("virtio-rng-pci", {"id": "random0", **_at(SLOT_RANDOM), "rng": "rng0"}),
        *_balloon(plan),
        Part("pvpanic-pci", {"id": "panic0", "bus": "pcie.0", "addr": f"{SLOT_PANIC:#x}"}),
        Part("vmgenid", {"id": "generation0", "guid": plan.generation}),
    )
    disks = tuple(_disk(index, disk) for index, disk in enumerate(plan.disks))
    nics = tuple(nic_part(slot, nic, plan.board.offloads) for slot, nic in zip(nic_slots(plan), plan.nics, strict=True))
    tpm = (Part("tpm-crb", {"id": "tpm0-device", "tpmdev": "tpm0"}),) if plan.tpm is not None else ()
    return (*_pieces(plan), *ports, *_display(plan), *fixed, *tpm, *disks, *nics)


def nic_slots(plan: LaunchPlan) -> list[int]:
    """The place of each network card."""
    return [index if nic.slot is None else nic.slot for index, nic in enumerate(plan.nics)]


def _display(plan: LaunchPlan) -> tuple[Part, ...]:
    """A plain VGA card: every firmware and every system ever made knows it, and its screen is memory that snapshots can hold."""
    if plan.display == "none":
        return ()
    return (Part("VGA", {"id": "display0", "bus": "pcie.0", "addr": f"{SLOT_DISPLAY:#x}"}),)


def _balloon(plan: LaunchPlan) -> tuple[Part, ...]:
    if not plan.board.balloon:
        return ()
    return (
        Part("virtio-balloon-pci", {"id": "balloon0", **_at(SLOT_BALLOON), "free-page-reporting": True, "deflate-on-oom": True}),
    )


def _at(slot: int) -> dict[str, object]:
    """A place on the root bus; modern virtio only (behind a root port that is so by itself)."""
    return {"bus": "pcie.0", "addr": f"{slot:#x}", "disable-legacy": "on"}


def _root_port(index: int) -> Part:
    place = {"bus": "pcie.0", "addr": f"{SLOT_ROOT_PORTS:#x}.{index:x}", "multifunction": True}
    return Part("pcie-root-port", {"id": f"rp{index}", "chassis": index + 1, **place})


def _disk(index: int, disk: DiskPlan) -> Part:
    place: dict[str, object] = _at(SLOT_DISK) if index == 0 else {"bus": f"rp{DISK_PORTS[index - 1]}", "addr": "0x0"}
    # A full host disk pauses the guest until there is room; a host's read error is told to the guest, as a real disk would.
    policy = {"werror": "stop", "rerror": "report"}
    serial = {"serial": disk.serial} if disk.serial else {}
    names = {"id": f"{disk.name}-device", **place, "drive": disk.name, **serial}
    return Part("virtio-blk-pci", {**names, "bootindex": index + 1, **policy})


# What a card can do for its guest belongs to a saved state (docs/decisions/0007). These need a kernel newer than others may have;
_NOT_EVERYWHERE: Final = ("guest_ufo", "host_ufo", "guest_uso4", "guest_uso6", "host_uso")
# and these need a tap.
_OFFLOADS: Final = (
    "csum", "guest_csum", "gso", "guest_tso4", "guest_tso6", "guest_ecn", "host_tso4", "host_tso6", "host_ecn",
)  # fmt: skip


def nic_part(slot: int, nic: NicPlan, offloads: bool) -> Part:
    """The network card on one of the board's places for them."""
    place = {"bus": f"rp{NIC_PORTS[slot]}", "addr": "0x0"}
    off = dict.fromkeys(_NOT_EVERYWHERE if offloads else (*_OFFLOADS, *_NOT_EVERYWHERE), False)
    # No ROM: nothing boots from the network, and loading it would cost each boot.
    return Part("virtio-net-pci", {"id": f"nic{slot}", **place, "netdev": f"net{slot}", "mac": nic.mac, "romfile": "", **off})
