"""Images of whole systems (``debian``): installed by their own package system, booting by themselves.

The order decides what the digest covers: packages, files, commands, normalising, *digest*; only then come the parts that
follow from the digest (the names of file systems), are ours (the agent, known by the digest of its sources), or belong to where
the image was built (the address of the mirror).
"""

from __future__ import annotations

import re
import shlex
from typing import Final

from insula.errors import InsulaError
from insula.host.native import native_sources
from insula.images.archives import Entry, link, regular, with_parents, write_tar
from insula.images.bootdisk import GRUB_HOOK, GRUB_PACKAGES, DiskPlan, assemble, grub_configuration
from insula.images.layout import SYSTEM_AGENT, Built, guest_files, sha256
from insula.images.mirror import KEYRING, Mirror
from insula.images.packages import DPKG_OPTIONS, bootstrap
from insula.images.recipe import Recipe
from insula.images.room import Room
from insula.images.tree import TAR_OF_TREE, read_tree

_UNIT: Final = "insula-agent.service"
_UNIT_PATH: Final = f"usr/lib/systemd/system/{_UNIT}"
_NEEDED: Final = ("initramfs-tools", "kmod", "cpio", "zstd")  # for kernels to install, and for update-boot
# The image's own apt installs all but the base: another version of apt, such as the host's, takes packages in another order, and
# then system users get other numbers. A file that is there before its package stays as it is. The host's certificates serve
# mirrors that speak https, which the base could not check.
_INSTALL: Final = r"""
tar --extract --preserve-permissions --numeric-owner --keep-directory-symlink --directory="$1" --file=/work/files.tar
[ ! -e /etc/ssl/certs/ca-certificates.crt ] || cp /etc/ssl/certs/ca-certificates.crt "$1/insula-build.crt"
DEBIAN_FRONTEND=noninteractive chroot "$1" apt-get --yes --quiet --no-install-recommends -o Dpkg::Options::=--force-confold \
    -o Dpkg::Use-Pty=0 -o Acquire::https::CAInfo=/insula-build.crt install {packages}
rm -f "$1/insula-build.crt"
"""
_KERNEL: Final = re.compile(r"boot/vmlinuz-(.+)")

# Takes away what the build left and what two machines must not share; what remains is the same whoever built it, and when.
_NORMALISE: Final = r"""
cd /work/tree
rm -rf var/lib/apt/lists var/cache/apt var/log var/tmp tmp run root/.cache root/.gnupg root/.bash_history lost+found
mkdir -p var/lib/apt/lists/partial var/cache/apt/archives/partial var/log/apt var/log/private run
mkdir -m 1777 tmp var/tmp
chmod 0700 var/log/private var/cache/apt/archives/partial var/lib/apt/lists/partial
rm -f etc/ssh/ssh_host_* var/lib/systemd/random-seed var/lib/systemd/credential.secret etc/machine-id var/lib/dbus/machine-id
rm -f etc/hostname etc/resolv.conf etc/.resolv.conf.systemd-resolved.bak
rm -f etc/.pwd.lock etc/passwd- etc/shadow- etc/group- etc/gshadow- etc/subuid- etc/subgid-
rm -f etc/apt/apt.conf.d/99mmdebstrap etc/dpkg/dpkg.cfg.d/99mmdebstrap etc/fstab
[ "$1" = keep ] || rm -f etc/apt/sources.list etc/apt/sources.list.d/*
rm -f var/lib/dpkg/*-old var/lib/dpkg/lock* var/lib/dpkg/triggers/Lock var/lib/ucf/*.[0-9]* var/cache/ldconfig/aux-cache
rm -rf var/cache/debconf/*-old var/cache/debconf/tmp.ci var/cache/man/*
find . -xdev -name __pycache__ -prune -exec rm -rf {} +
# The order of lines depends on the order in which packages were configured, and that on the host's version of mmdebstrap.
for pair in passwd:shadow group:gshadow; do
    awk -F: 'NR == FNR { line[$1] = $0; next } $1 in line { print line[$1] }' "etc/${pair#*:}" "etc/${pair%:*}" > /tmp/sorted
    cat /tmp/sorted > "etc/${pair#*:}"
done
find etc/systemd -type l -lname '/lib/systemd/*' | while read -r path; do ln -sfn "/usr$(readlink "$path")" "$path"; done
# What the recipe names was asked for; all else came along, and may go when nothing needs it any more.
dpkg-query --admindir=var/lib/dpkg --show --showformat='${Package}\n' | sort -u | awk -v manual=" $2 " -v arch="$3" '
    index(manual, " " $1 " ") == 0 { printf "Package: %s\nArchitecture: %s\nAuto-Installed: 1\n\n", $1, arch }
' > var/lib/apt/extended_states
: > etc/machine-id
chmod 0444 etc/machine-id
ln -sf ../run/systemd/resolve/stub-resolv.conf etc/resolv.conf
# Without these, systemd takes the first boot for an update of /usr, and rebuilds its databases for seconds.
: > etc/.updated
: > var/.updated
find . \( -type d -o -newermt "@$SOURCE_DATE_EPOCH" \) -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
"""
_FINISH: Final = r"""
tar --extract --preserve-permissions --numeric-owner --keep-directory-symlink --directory=/work/tree --file=-
mount --bind /dev /work/tree/dev
chroot /work/tree /usr/lib/insula/update-boot
umount /work/tree/dev
find /work/tree -newermt "@$SOURCE_DATE_EPOCH" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
"""


def build_system(room: Room, recipe: Recipe, arch: str, mirror: Mirror, agent: bytes) -> Built:
    """Make ``/work/disk.raw`` in the room. Raises as Room.run, and InsulaError (``kernel_missing``)."""
    _install_packages(room, recipe, arch, mirror)
    manual = " ".join(("apt", *_NEEDED, *recipe.packages, recipe.kernel.package))
    room.script(_NORMALISE, "replace" if mirror.main else "keep", manual, arch, step="cleaning up", fraction=0.66)
    with room.reading([*TAR_OF_TREE, "--directory=/work/tree", "."], step="computing the digest") as stream:
        tree = read_tree(stream)
    kernels = sorted(match[1] for path in tree.lines if (match := _KERNEL.fullmatch(path.decode(errors="surrogateescape"))))
    if not kernels:
        raise InsulaError("the kernel package brought no kernel", code="kernel_missing", hint="choose another kernel package")
    content = tree.digest()
    plan = DiskPlan(sha256(f"{content} {recipe.canonical().decode()}".encode()), arch, recipe.disk_bytes)
    entries = write_tar(with_parents(_own_parts(recipe, plan, mirror, agent)), recipe.epoch)
    room.script(_FINISH, step="adding the agent", fraction=0.8, data=entries)
    assemble(room, plan)
    return Built(content=content, kernel=kernels[-1])


def _install_packages(room: Room, recipe: Recipe, arch: str, mirror: Mirror) -> None:
    room.script(
        "mkdir -m 0755 /work/boot; cat > /work/files.tar; cat",
        step="preparing",
        fraction=0.01,
        data=write_tar(with_parents(_files(recipe)), recipe.epoch),
    )
    kernel = recipe.kernel.package + (f"/{recipe.kernel.suite}" if recipe.kernel.suite else "")
    install = _INSTALL.format(packages=shlex.join((*recipe.packages, *_NEEDED, kernel, *GRUB_PACKAGES)))
    commands = "".join(f'chroot "$1" sh -euc {shlex.quote(command)}\n' for command in recipe.commands)
    grub = GRUB_HOOK.format(packages=shlex.join(GRUB_PACKAGES))
    bootstrap(
        room,
        "/work/tree",
        variant="apt",
        suite=recipe.suite,
        arch=arch,
        mirror=mirror,
        extra_suites=(recipe.kernel.suite,) if recipe.kernel.suite else (),
        hooks=[f"--customize-hook={_hook(room, number, script)}" for number, script in enumerate((install, commands, grub))],
        fraction=0.05,
        until=0.65,
    )


def _hook(room: Room, number: int, script: str) -> str:
    """The path of a program for mmdebstrap to run: the text of one would stand in its progress, and in place of an error."""
    path = f"/work/hook-{number}"
    room.script(
        'cat >"$1"; chmod 0755 "$1"', path, step="preparing", fraction=0.02, data=f"#!/bin/sh\nset -eu\n{script}".encode()
    )
    return path


def _files(recipe: Recipe) -> list[Entry]:
    """What every system of ours has, and the recipe's files."""
    entries = [regular("etc/dpkg/dpkg.cfg.d/insula-slim", "".join(f"{option}\n" for option in DPKG_OPTIONS).encode())]
    entries += _guest_files()
    for file in recipe.files:
        uid, gid = (int(number) for number in file.owner.split(":"))
        entries.append(Entry(file.path.strip("/"), 0o100000 | int(file.mode, 8), file.content.encode(), uid=uid, gid=gid))
    return entries


def _guest_files() -> list[Entry]:
    """What ``images/guest`` holds, at the same places; scripts are executable."""
    return [regular(name, content, 0o755 if content.startswith(b"#!") else 0o644) for name, content in guest_files()]


def _sources(recipe: Recipe, mirror: Mirror) -> str:
    """apt's sources for the guest, in deb822 form; empty when mmdebstrap's own choice stays."""
    if mirror.main is None:
        return ""
    rolling = recipe.suite in ("sid", "unstable")
    suites = [
        recipe.suite,
        *([] if rolling else [f"{recipe.suite}-updates"]),
        *([recipe.kernel.suite] if recipe.kernel.suite else []),
    ]
    paragraphs = [(mirror.main, " ".join(suites))]
    if mirror.security is not None and not rolling:
        paragraphs.append((mirror.security, f"{recipe.suite}-security"))
    return "\n".join(
        f"Types: deb\nURIs: {uri}\nSuites: {names}\nComponents: main\nSigned-By: {KEYRING}\n" for uri, names in paragraphs
    )


def _own_parts(recipe: Recipe, plan: DiskPlan, mirror: Mirror, agent: bytes) -> list[Entry]:
    """What follows from the digest, and the agent."""
    unit = (native_sources() / "agent" / _UNIT).read_bytes()
    fstab = f"UUID={plan.root_uuid} / ext4 defaults,errors=remount-ro,x-systemd.growfs 0 1\n"
    parts = [
        regular("etc/fstab", fstab.encode()),
        regular("boot/grub/grub.cfg", grub_configuration(plan, recipe.kernel.cmdline).encode()),
        regular(SYSTEM_AGENT, agent, 0o755),
        regular(_UNIT_PATH, unit),
        link(f"etc/systemd/system/{_wanted_by(unit)}.wants/{_UNIT}", f"/{_UNIT_PATH}"),
    ]
    if sources := _sources(recipe, mirror):
        parts.append(regular("etc/apt/sources.list.d/debian.sources", sources.encode()))
    return parts


def _wanted_by(unit: bytes) -> str:
    match = re.search(rb"^WantedBy=([a-z-]+\.target)$", unit, re.MULTILINE)
    return match[1].decode() if match else "multi-user.target"
