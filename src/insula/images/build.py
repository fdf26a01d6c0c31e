"""Builds images: recipe in, immutable folder out.

    recipe lock ──▶ already built? ──▶ staging folder (locked while we live) ──▶ room: packages, tree, disk
                       │ yes                                                        │
                       ▼                                                            ▼
                     image ◀── names ◀── images/DIGEST by one rename ◀── record last, all fsynced

Whatever ends the build early leaves a staging folder at most, and the next verb sweeps that away.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from insula.disks.convert import raw_to_layer
from insula.errors import DamagedRecord, HostLacks, UsageError
from insula.host.files import explain_os_error, free_bytes, fsync_folder, remove_tree
from insula.host.namespaces import remove_handed_over
from insula.host.native import native_digest, native_path
from insula.host.process import require_program
from insula.images.catalogue import Names, build_lock, find_built, images_lock, read_names, sweep, write_names
from insula.images.layout import Built, guest_digest, sha256
from insula.images.mirror import host_mirror
from insula.images.progress import Watcher
from insula.images.recipe import Recipe
from insula.images.record import VERSION, Image, ImageRecord, read_image
from insula.images.room import Room
from insula.images.verify import ensure_verified, verify
from insula.model.architectures import debian_architecture
from insula.model.units import GIB, MIB, format_size
from insula.store import names
from insula.store.locks import is_still_there
from insula.store.names import Home
from insula.store.records import write_record
from insula.store.sums import FileSum, sum_file

# Changes whenever this code would make something else of the same recipe.
_BUILDER: Final = 1
_ROOM_NEEDED: Final = {"direct": 400 * MIB, "disk": 3 * GIB}


def host_architecture() -> str:
    """This computer's architecture by Debian's name."""
    return debian_architecture(os.uname().machine)


def cache_key(recipe: Recipe, arch: str) -> str:
    """What an image depends on and we know without asking the network."""
    parts = (b"%d" % _BUILDER, recipe.canonical(), arch.encode(), native_digest("agent").encode(), guest_digest().encode())
    return sha256(b"\0".join(parts))[:32]


def build(recipe: Recipe, home: Home, watcher: Watcher | None = None, *, arch: str = "", refresh: bool = False) -> Image:
    """The image of ``recipe``: the one built before, or a new one. ``refresh`` builds anew from today's archive.

    Raises UsageError (``bad_architecture``), HostLacks (``no_space``, ``archive_unreachable``, ``no_subids``,
    ``program_missing`` …), ChildFailed (``build_failed``), Interrupted. After any of them nothing is left of the build.
    """
    watcher = watcher or Watcher()
    arch = debian_architecture(arch) if arch else host_architecture()
    if arch not in recipe.architectures:
        raise UsageError(
            f"the recipe '{recipe.name}' is not for {arch}",
            code="bad_architecture",
            hint=f"it is for {', '.join(recipe.architectures)}",
        )
    key = cache_key(recipe, arch)
    if not refresh and (image := _whole(home, key)):
        return _name(home, image, key)
    home.prepare()
    sweep(home)
    with _recipe_lock(home, key, watcher):
        # Another build of the same may have ended while we waited.
        if not refresh and (image := _whole(home, key)):
            return _name(home, image, key)
        _check_space(home, recipe)
        try:
            with _staging(home) as staging:
                record = _make(recipe, arch, key, staging, watcher)
                return _publish(home, staging, record, watcher)
        except OSError as cause:
            raise explain_os_error(cause, home.images / "new") from cause


def _whole(home: Home, key: str) -> Image | None:
    """What was built of this before, if all of it is as it was built; one that is not is built anew."""
    with contextlib.suppress(DamagedRecord):
        if image := find_built(home, key):
            ensure_verified(home, image)
            return image
    return None


def _make(recipe: Recipe, arch: str, key: str, staging: Path, watcher: Watcher) -> ImageRecord:
    """Fill ``staging`` with the image's files."""
    watcher.say("preparing", 0.0)
    require_program("bwrap")  # for the room in which the disk is packed in the end
    agent = native_path("insula-agent", arch).read_bytes()
    with Room.open(staging / names.BUILD_ROOM, recipe.epoch, watcher) as room:
        built = _assemble(room, recipe, arch, agent, staging)
        watcher.say("packing the disk", 0.9)
        raw = room.folder / "disk.raw"
        disk_bytes = raw.stat().st_size
        raw_to_layer(raw, staging / names.ROOT_LAYER)
    files = {}
    for name in sorted(path.name for path in staging.iterdir() if path.name != names.LOCK):
        watcher.say("hashing", 0.95)
        files[name] = _seal(staging / name)
    return ImageRecord(
        version=VERSION,
        digest=_digest(recipe, arch, built),
        key=key,
        arch=arch,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        kernel=built.kernel,
        disk_bytes=disk_bytes,
        recipe=recipe,
        files=files,
    )


def _assemble(room: Room, recipe: Recipe, arch: str, agent: bytes, staging: Path) -> Built:
    if recipe.boot == "direct":
        from insula.images.direct import build_direct

        return build_direct(room, recipe, arch, host_mirror(), agent, staging)
    from insula.images.system import build_system

    return build_system(room, recipe, arch, host_mirror(), agent)


def _digest(recipe: Recipe, arch: str, built: Built) -> str:
    parts = ("insula image 1", recipe.canonical().decode(), arch, native_digest("agent"), built.kernel, built.content)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _seal(path: Path) -> FileSum:
    path.chmod(0o444)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return sum_file(path)


def _publish(home: Home, staging: Path, record: ImageRecord, watcher: Watcher) -> Image:
    """Give the finished folder its name, by one rename; then let the names mean it."""
    write_record(staging / names.IMAGE_RECORD, record, 0o444)
    watcher.say("done", 1.0)
    target = home.image(record.digest)
    damaged = _damaged(home, target)
    with images_lock(home):
        if damaged is not None and _inode(target) == damaged:
            gone = home.images / f"{names.GONE_PREFIX}{secrets.token_hex(8)}"
            target.rename(gone)
        if not target.exists():
            (staging / names.LOCK).unlink()
            staging.rename(target)
            fsync_folder(home.images)
    sweep(home)
    image = read_image(target)
    verify(home, image)
    return _name(home, image, record.key)


def _damaged(home: Home, folder: Path) -> int | None:
    """The inode of the same content, built before, if it is no longer what it was; None: it is, and stays, or there is none.

    Everything is hashed, so no lock is held meanwhile; the inode tells whether the folder is still the one that was judged.
    """
    from insula.errors import DamagedRecord

    inode = _inode(folder)
    if inode is None:
        return None
    try:
        verify(home, read_image(folder))
    except (DamagedRecord, FileNotFoundError):
        return inode
    return None


def _inode(folder: Path) -> int | None:
    try:
        return os.stat(folder, follow_symlinks=False).st_ino
    except FileNotFoundError:
        return None


def _name(home: Home, image: Image, key: str) -> Image:
    table = read_names(home)
    wanted = dict.fromkeys(image.record.recipe.names, image.digest)
    if wanted.items() <= table.names.items() and table.keys.get(key) == image.digest:
        return image
    with images_lock(home):
        table = read_names(home)
        write_names(home, Names(names=table.names | wanted, keys=table.keys | {key: image.digest}))
    return image


@contextlib.contextmanager
def _staging(home: Home) -> Iterator[Path]:
    """A folder for a build, locked for as long as we live; gone at the end unless it was renamed."""
    staging = home.images / f"{names.BUILDING_PREFIX}{secrets.token_hex(8)}"
    with images_lock(home):  # so that nobody sweeps it away before it is locked
        staging.mkdir(mode=0o700)
        descriptor = os.open(staging / names.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield staging
    finally:
        remove_handed_over(staging / names.BUILD_ROOM)  # it is there when Ctrl-C came while the room was being cleared
        remove_tree(staging)
        os.close(descriptor)


@contextlib.contextmanager
def _recipe_lock(home: Home, key: str, watcher: Watcher) -> Iterator[None]:
    """Of two builds of the same, the second waits. The file goes with the last of them."""
    lock = build_lock(home, key)
    while (descriptor := _try_lock(lock)) is None:
        watcher.say("waiting for another build of the same recipe", 0.0)
        # flock cannot wait and listen for "give up" at once.
        threading.Event().wait(0.2)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # while we hold it: who opened it meanwhile sees that it is gone
        os.close(descriptor)


def _try_lock(lock: Path) -> int | None:
    """The descriptor that holds ``lock``; None: somebody else does, or did and took the file away."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_still_there(descriptor, lock):
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return None


def _check_space(home: Home, recipe: Recipe) -> None:
    needed, free = _ROOM_NEEDED[recipe.boot], free_bytes(home.images)
    if free < needed:
        raise HostLacks(
            f"building '{recipe.name}' needs about {format_size(needed)} of disk, and {home.images} has {format_size(free)}",
            code="no_space",
            hint="free some space, or set INSULA_HOME to a folder on another disk",
        )
