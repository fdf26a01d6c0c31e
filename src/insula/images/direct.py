"""Images for direct boot (``tiny``): a kernel, an initramfs of modules and the agent, and a small root made of busybox.

The packages are only unpacked; nothing of them runs, so the tree is what we write here.
"""

from __future__ import annotations

import lzma
import re
from pathlib import Path
from typing import Final

from insula.errors import InsulaError
from insula.images import archives
from insula.images.archives import Entry, folder, link, regular
from insula.images.filesystem import make_ext4
from insula.images.layout import DIRECT_AGENT, Built, sha256
from insula.images.mirror import Mirror
from insula.images.modules import decompress, load_order, module_name, read_builtin
from insula.images.packages import bootstrap
from insula.images.recipe import Recipe
from insula.images.room import Room
from insula.images.tree import TAR_OF_TREE, read_tree
from insula.store import names

_BUSYBOX: Final = "usr/bin/busybox"
_KERNEL: Final = re.compile(r"boot/vmlinuz-(.+)")
_UNPACK: Final = r"""
mkdir -m 0755 /work/root
tar --extract --preserve-permissions --numeric-owner --directory=/work/root --file=-
find /work/root -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
"""
_FOLDERS: Final = ("dev", "proc", "sys", "run", "mnt", "srv", "home", "usr/lib", "var/log", "var/lib", "var/tmp", "etc")


def build_direct(room: Room, recipe: Recipe, arch: str, mirror: Mirror, agent: bytes, staging: Path) -> Built:
    """Make the files of ``recipe`` in ``staging``. Raises as Room.run, and InsulaError (``module_missing``)."""
    bootstrap(
        room,
        "/work/packages",
        variant="extract",
        suite=recipe.suite,
        arch=arch,
        packages=(*recipe.packages, recipe.kernel.package),
        mirror=mirror,
        extra_suites=(recipe.kernel.suite,) if recipe.kernel.suite else (),
        fraction=0.05,
        until=0.6,
    )
    with room.reading(
        [*TAR_OF_TREE, "--directory=/work/packages", "boot", _BUSYBOX, "usr/lib/modules"], step="reading the packages"
    ) as stream:
        found = read_tree(stream, keep=("boot/vmlinuz-", _BUSYBOX, "usr/lib/modules/"))
    release, kernel = _kernel(found.contents)
    initramfs = _initramfs(recipe, found.contents)
    root = _root(room, recipe, found.contents[_BUSYBOX])
    digest = sha256(_identity(release, kernel, initramfs, root, recipe))
    _install(room, root, agent, recipe.epoch)
    make_ext4(room, "/work/root", "/work/disk.raw", digest=digest, size=recipe.disk_bytes, fraction=0.8)
    (staging / names.KERNEL).write_bytes(kernel)
    (staging / names.INITRD).write_bytes(archives.write_cpio([*initramfs, regular("init", agent, 0o755)]))
    return Built(content=digest, kernel=release)


def _kernel(contents: dict[str, bytes]) -> tuple[str, bytes]:
    kernels = sorted((match[1], path) for path in contents if (match := _KERNEL.fullmatch(path)))
    if not kernels:
        raise InsulaError("the kernel package brought no kernel", code="kernel_missing", hint="choose another kernel package")
    release, path = kernels[-1]
    return release, contents[path]


def _initramfs(recipe: Recipe, contents: dict[str, bytes]) -> list[Entry]:
    """All but the agent: modules in plain form, and the list by which the agent loads them."""
    builtin: frozenset[str] = frozenset()
    modules: dict[str, bytes] = {}
    wanted = _closure_candidates(contents)
    for path, content in contents.items():
        if path.endswith("/modules.builtin"):
            builtin = read_builtin(content.decode())
    order = load_order(recipe.kernel.modules, wanted, builtin)
    for name in order:
        modules[name] = wanted[name]
    entries = [folder(name) for name in ("dev", "proc", "sys", "root")]
    entries.append(archives.character_device("dev/console", 5, 1))
    paths = "".join(f"/lib/modules/{name}.ko\n" for name in order)
    entries.append(regular("etc/insula/modules", paths.encode()))
    entries += [regular(f"lib/modules/{name}.ko", modules[name]) for name in order]
    return archives.with_parents(entries)


class _Lazily(dict[str, bytes]):
    """Modules by name, decompressed when first looked at: a kernel has thousands, an initramfs five."""

    def __init__(self, packed: dict[str, tuple[str, bytes]]) -> None:
        super().__init__()
        self._packed = packed

    def __contains__(self, name: object) -> bool:
        return name in self._packed

    def __missing__(self, name: str) -> bytes:
        try:
            self[name] = decompress(*self._packed[name])
        except lzma.LZMAError as cause:
            raise InsulaError(
                f"the kernel's module '{name}' is damaged", code="module_missing", hint="build the image again"
            ) from cause
        return self[name]


def _closure_candidates(contents: dict[str, bytes]) -> _Lazily:
    return _Lazily({module_name(path): (path, content) for path, content in contents.items() if ".ko" in path.rsplit("/", 1)[-1]})


def _root(room: Room, recipe: Recipe, busybox: bytes) -> list[Entry]:
    """The root's entries, without the agent."""
    with room.reading([f"/work/packages/{_BUSYBOX}", "--list"], step="asking busybox what it can do") as stream:
        applets = sorted({word.decode() for word in stream.read().split() if re.fullmatch(rb"[a-z0-9_.+\[-]+", word)})
    entries = [folder(name) for name in _FOLDERS]
    entries += [folder("root", 0o700), folder("tmp", 0o1777), folder("usr/bin")]
    entries += [
        link("bin", "usr/bin"),
        link("sbin", "usr/bin"),
        link("lib", "usr/lib"),
        link("usr/sbin", "bin"),
        link("var/run", "/run"),
    ]
    entries.append(regular(_BUSYBOX, busybox, 0o755))
    # "busybox" lists itself: a link of that name would replace the program by a link to itself.
    entries += [link(f"usr/bin/{name}", "busybox") for name in applets if name != "busybox"]
    for file in recipe.files:
        uid, gid = (int(number) for number in file.owner.split(":"))
        entries.append(Entry(file.path.strip("/"), 0o100000 | int(file.mode, 8), file.content.encode(), uid=uid, gid=gid))
    return archives.with_parents(entries)


def _identity(release: str, kernel: bytes, initramfs: list[Entry], root: list[Entry], recipe: Recipe) -> bytes:
    import io

    tree = read_tree(io.BytesIO(archives.write_tar(root, recipe.epoch)))
    parts = (release, sha256(kernel), sha256(archives.write_cpio(initramfs)), tree.digest())
    return "\n".join(parts).encode()


def _install(room: Room, root: list[Entry], agent: bytes, epoch: int) -> None:
    whole = archives.with_parents([*root, regular(DIRECT_AGENT, agent, 0o755)])
    room.script(
        _UNPACK,
        step="putting the root together",
        fraction=0.7,
        data=archives.write_tar(whole, epoch),
    )
