"""Which images there are, and under which names."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from insula.errors import DamagedRecord, InsulaError
from insula.host.files import fsync_folder, remove_tree
from insula.host.namespaces import remove_handed_over
from insula.images.recipe import recipes, unknown_image
from insula.images.record import Image, read_image
from insula.images.verify import forget
from insula.store import names
from insula.store.locks import held
from insula.store.names import Home
from insula.store.records import read_record, write_record

_BUILD_LOCK = "build-"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"[0-9a-f]{8,64}")


class Names(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``names.json``: what a name means now, and which image answers which question (see build.cache_key)."""

    version: int = 1
    names: dict[str, str] = {}
    keys: dict[str, str] = {}


class Listed(msgspec.Struct, frozen=True):
    """One line of the catalogue: the image, or why it cannot be read; and the names that mean it."""

    digest: str
    names: tuple[str, ...]
    image: Image | None
    error: InsulaError | None = None


@contextlib.contextmanager
def images_lock(home: Home) -> Iterator[None]:
    """Hold the lock of the images folder: for instants only, never while something is built."""
    home.prepare()
    descriptor = os.open(home.images / names.IMAGES_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_names(home: Home) -> Names:
    """What is named. Raises DamagedRecord."""
    try:
        return read_record(home.images / names.IMAGE_NAMES, Names)
    except FileNotFoundError:
        return Names()


def write_names(home: Home, table: Names) -> None:
    """Call under ``images_lock``."""
    write_record(home.images / names.IMAGE_NAMES, table)


def find(home: Home, name: str) -> Image | None:
    """The image called ``name``, or whose digest begins so (8 digits or more). Raises DamagedRecord when it cannot be read."""
    digest = read_names(home).names.get(name) or _by_prefix(home, name)
    if digest is None:
        return None
    try:
        return read_image(home.image(digest))
    except FileNotFoundError:
        return None


def find_built(home: Home, key: str) -> Image | None:
    """The image that answered this question before, if it is still there and whole enough to be read."""
    digest = read_names(home).keys.get(key)
    if digest is None:
        return None
    with contextlib.suppress(FileNotFoundError, DamagedRecord):
        return read_image(home.image(digest))
    return None


def get(home: Home, name: str) -> Image:
    """Like ``find``. Raises NotFound (``image_not_found``) offering the nearest names."""
    image = find(home, name)
    if image is None:
        raise unknown_image(name, sorted({*read_names(home).names, *recipes()}))
    return image


def _by_prefix(home: Home, prefix: str) -> str | None:
    if not _PREFIX.fullmatch(prefix):
        return None
    matching = [digest for digest in _digests(home) if digest.startswith(prefix)]
    return matching[0] if len(matching) == 1 else None


def _digests(home: Home) -> list[str]:
    try:
        return sorted(entry for entry in os.listdir(home.images) if _DIGEST.fullmatch(entry))
    except FileNotFoundError:
        return []


def list_images(home: Home) -> list[Listed]:
    """All images, the broken ones with the reason."""
    table = read_names(home)
    listed = []
    for digest in _digests(home):
        meaning = tuple(sorted(name for name, meant in table.names.items() if meant == digest))
        try:
            listed.append(Listed(digest, meaning, read_image(home.image(digest))))
        except FileNotFoundError:
            error = DamagedRecord(f"the image {digest[:12]} has no record", hint=f"run: insula image delete {digest[:12]}")
            listed.append(Listed(digest, meaning, None, error))
        except DamagedRecord as error:
            listed.append(Listed(digest, meaning, None, error))
    return listed


def delete(home: Home, name: str) -> str:
    """Delete an image and its names; returns its digest. Machines made from it keep their layers.

    Raises NotFound (``image_not_found``).
    """
    with images_lock(home):
        table = read_names(home)
        digest = table.names.get(name) or _by_prefix(home, name)
        if digest is None or not home.image(digest).exists():
            raise unknown_image(name, sorted(table.names))
        gone = _put_aside(home, table, digest)
    forget(home, digest)
    remove_tree(gone)
    return digest


def _put_aside(home: Home, table: Names, digest: str) -> Path:
    """Take an image out of sight, its names first; the folder that is left to be removed. Call under ``images_lock``."""
    kept = {called: meant for called, meant in table.names.items() if meant != digest}
    keys = {key: meant for key, meant in table.keys.items() if meant != digest}
    write_names(home, Names(names=kept, keys=keys))
    gone = home.images / f"{names.GONE_PREFIX}{os.urandom(8).hex()}"
    home.image(digest).rename(gone)
    fsync_folder(home.images)
    return gone


def delete_unused(home: Home, digest: str, *, named: bool) -> bool:
    """Delete an image unless somebody uses it now, or (unless ``named``) it has a name; whether it was deleted."""
    with images_lock(home):
        table = read_names(home)
        if (not named and digest in table.names.values()) or is_used(home, digest) or not home.image(digest).exists():
            return False
        gone = _put_aside(home, table, digest)
    forget(home, digest)
    remove_tree(gone)
    return True


def is_used(home: Home, digest: str) -> bool:
    """Whether a file of the image has a second link, as every machine made from it holds, or it is just being given its name.

    Links of the image's own warm states do not count: they go when it goes.
    """
    folder = home.image(digest)
    before = _warm_links(home)
    with contextlib.suppress(FileNotFoundError):
        seen = [entry.lstat() for entry in list(folder.iterdir()) if not entry.is_dir()]
        warm = before & _warm_links(home)  # one that came or went meanwhile must not hide a machine's
        if any(entry.st_nlink - warm[entry.st_ino] > 1 for entry in seen):
            return True
        with contextlib.suppress(DamagedRecord), held(build_lock(home, read_image(folder).record.key)) as free:
            return not free
    return False


def _warm_links(home: Home) -> Counter[int]:
    """How many links warm states hold to each inode; one that is just going is not counted."""
    links: Counter[int] = Counter()
    for path in home.warm.glob(f"*/{names.LAYERS}/*"):
        with contextlib.suppress(FileNotFoundError):
            links[path.lstat().st_ino] += 1
    return links


def build_lock(home: Home, key: str) -> Path:
    """The file whose lock is held while the image that answers ``key`` is built and named."""
    return home.host / f"{_BUILD_LOCK}{key}.lock"


def sweep(home: Home) -> None:
    """Remove what dead builds and deletes left. Cheap when there is nothing; what is in use is not touched."""
    for lock in home.host.glob(f"{_BUILD_LOCK}*.lock"):
        with held(lock) as free:
            if free:
                lock.unlink(missing_ok=True)  # while it is held: see build.py
    try:
        left = [entry for entry in os.listdir(home.images) if entry.startswith((names.BUILDING_PREFIX, names.GONE_PREFIX))]
    except FileNotFoundError:
        return
    if not left:
        return
    with images_lock(home):
        for entry in left:
            folder = home.images / entry
            with held(folder / names.LOCK) as free:
                if free:
                    remove_handed_over(folder / names.BUILD_ROOM)
                    remove_tree(folder)


def require_recipe_or_image(home: Home, name: str) -> None:
    """Raises NotFound (``image_not_found``) unless ``name`` is an image here or a recipe that comes with Insula."""
    if find(home, name) is None and name not in recipes():
        raise unknown_image(name, sorted({*read_names(home).names, *recipes()}))
