"""A disk that boots by itself under BIOS and UEFI, put together without root, mounts or loop devices.

    sector 0        GRUB's boot.img inside a protective MBR      (BIOS starts here)
    1 … 33          partition table
    2048 … 4095     "bios": GRUB's core.img                      (boot.img loads this)
    4096 … 20479    "esp": FAT with EFI/BOOT/BOOTX64.EFI         (UEFI starts here)
    20480 …         "root": ext4; the last one, so that it can grow
    the end         the table's backup

Both GRUBs read ``/boot/grub/grub.cfg`` of the root next to them. That boots the newest kernel with an initrd of our own (the
agent as /init: seconds faster than a general one), both kept by ``/usr/lib/insula/update-boot``, which the kernel packages
call; or, when those are missing, ``/vmlinuz`` and ``/initrd.img``, links kept by the kernel packages themselves. So an upgrade
inside the guest takes effect at its next boot.
"""

from __future__ import annotations

import struct
import uuid
from typing import Final

import msgspec

from insula.images.filesystem import derived_uuid, make_ext4
from insula.images.gpt import BIOS_BOOT, ESP, ROOT, SECTOR, TABLE_SECTORS, Partition, protective_mbr, tables
from insula.images.room import Room

_CORE_AT: Final = 2048
_ESP_AT: Final = 4096
_ROOT_AT: Final = 20480

# What GRUB must know: partition tables, the file system, and the words used in grub.cfg (ours, and what Debian's own would need).
_MODULES: Final = (
    "part_gpt ext2 fat normal linux configfile search search_fs_uuid search_label test echo ls cat reboot halt sleep true "
    "serial terminal gzio minicmd regexp loadenv probe"
)

# Runs with the tree as $1, before anything is taken away from it. GRUB's own tools run inside the tree, as its packages' code.
GRUB_HOOK: Final = rf"""
mkdir -p /work/boot "$1/grub-build"
chroot "$1" grub-mkimage -O i386-pc -p '(,gpt3)/boot/grub' -o /grub-build/core.img biosdisk {_MODULES}
chroot "$1" grub-mkimage -O x86_64-efi -p '(,gpt3)/boot/grub' -o /grub-build/BOOTX64.EFI {_MODULES}
cp "$1/usr/lib/grub/i386-pc/boot.img" "$1/grub-build/core.img" "$1/grub-build/BOOTX64.EFI" /work/boot/
rm -rf "$1/grub-build"
chroot "$1" apt-get --yes --quiet purge --auto-remove {{packages}}
"""
GRUB_PACKAGES: Final = ("grub-pc-bin", "grub-efi-amd64-bin", "grub-common")

_CONFIGURATION: Final = """\
# Boots the newest kernel (see /usr/lib/insula/update-boot). Edit at will: nothing rewrites this file.
serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
set timeout=0
set default=newest
set fallback="debian previous"
menuentry newest --id newest {{
    linux /boot/insula/newest/vmlinuz insula.root=UUID={uuid} insula.init=/sbin/init root=UUID={uuid} rw {cmdline}
    initrd /boot/insula/newest/initrd
}}
menuentry "newest, with Debian's initrd" --id debian {{
    linux /vmlinuz root=UUID={uuid} rw {cmdline}
    initrd /initrd.img
}}
menuentry "previous, with Debian's initrd" --id previous {{
    linux /vmlinuz.old root=UUID={uuid} rw {cmdline}
    initrd /initrd.img.old
}}
"""

_MAKE_ESP: Final = r"""
export MTOOLS_SKIP_CHECK=1
truncate -s "$1" /work/esp.img
mformat -i /work/esp.img -h 16 -s 32 -T "$(($1 / 512))" -H 4096 -N "$2" -v INSULA ::
mmd -i /work/esp.img ::EFI ::EFI/BOOT
touch -d "@$SOURCE_DATE_EPOCH" /work/boot/BOOTX64.EFI
mcopy -m -i /work/esp.img /work/boot/BOOTX64.EFI ::EFI/BOOT/BOOTX64.EFI
"""
_PUT: Final = 'dd status=none conv=notrunc bs=512 iflag=fullblock seek="$1" of=/work/disk.raw'


class DiskPlan(msgspec.Struct, frozen=True):
    """Where everything lies on a disk of ``size`` bytes, and what it is called; pure arithmetic on the digest."""

    digest: str
    arch: str
    size: int

    @property
    def sectors(self) -> int:
        return self.size // SECTOR

    @property
    def root_uuid(self) -> str:
        """The root file system's UUID."""
        return derived_uuid(self.digest, "root")

    @property
    def root_bytes(self) -> int:
        end = (self.sectors - TABLE_SECTORS) // 8 * 8
        return (end - _ROOT_AT) * SECTOR

    def partitions(self) -> list[Partition]:
        def named(use: str) -> uuid.UUID:
            return uuid.UUID(derived_uuid(self.digest, f"{use} partition"))

        last = _ROOT_AT + self.root_bytes // SECTOR - 1
        return [
            Partition(BIOS_BOOT, named("bios"), _CORE_AT, _ESP_AT - 1, "bios"),
            Partition(ESP, named("esp"), _ESP_AT, _ROOT_AT - 1, "esp"),
            Partition(ROOT[self.arch], named("root"), _ROOT_AT, last, "root"),
        ]


def grub_configuration(plan: DiskPlan, cmdline: str) -> str:
    """GRUB's configuration for the root of ``plan``."""
    return _CONFIGURATION.format(uuid=plan.root_uuid, cmdline=cmdline)


def boot_sectors(sectors: int, boot_image: bytes, core_image: bytes) -> tuple[bytes, bytes]:
    """GRUB's two BIOS stages, told where they are: sector 0, and what goes to sector 2048.

    The places are those of GRUB's own installer (``include/grub/i386/pc/boot.h``): in boot.img the kernel's sector at 0x5c, and
    two no-ops at 0x66 instead of a jump for floppies; in core.img's first sector a list with the rest of it at 0x1f4.
    """
    stage = bytearray(boot_image[:SECTOR])
    stage[0x5C:0x64] = struct.pack("<Q", _CORE_AT)
    stage[0x66:0x68] = b"\x90\x90"
    count = -(-len(core_image) // SECTOR)
    if count > _ESP_AT - _CORE_AT:
        raise ValueError("GRUB's core image is larger than its partition")
    core = bytearray(core_image.ljust(count * SECTOR, b"\0"))
    core[0x1F4:0x200] = struct.pack("<QHH", _CORE_AT + 1, count - 1, 0x820)
    return protective_mbr(sectors, bytes(stage)), bytes(core)


def assemble(room: Room, plan: DiskPlan) -> None:
    """Make ``/work/disk.raw`` of ``/work/tree`` and ``/work/boot``. Raises as Room.run."""
    make_ext4(
        room,
        "/work/tree",
        "/work/disk.raw",
        digest=plan.digest,
        size=plan.root_bytes,
        offset=_ROOT_AT * SECTOR,
        total=plan.size,
        fraction=0.82,
    )
    step = "making the disk bootable"
    serial = derived_uuid(plan.digest, "esp")[:8]
    room.script(_MAKE_ESP, str((_ROOT_AT - _ESP_AT) * SECTOR), serial, step=step, fraction=0.88)
    mbr, core = boot_sectors(plan.sectors, _read(room, "/work/boot/boot.img"), _read(room, "/work/boot/core.img"))
    primary, backup = tables(uuid.UUID(derived_uuid(plan.digest, "disk")), plan.sectors, plan.partitions())
    for content, sector in ((mbr, 0), (primary, 1), (backup, plan.sectors - TABLE_SECTORS), (core, _CORE_AT)):
        room.script(_PUT, str(sector), step=step, fraction=0.88, data=content)
    room.script(f"{_PUT} if=/work/esp.img", str(_ESP_AT), step=step, fraction=0.88)


def _read(room: Room, path: str) -> bytes:
    with room.reading(["cat", path], step="making the disk bootable") as stream:
        return stream.read()
