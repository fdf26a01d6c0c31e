"""Makes sure that an image's files are what was built, before a machine is made of them. How: see store/sums.py."""

from __future__ import annotations

import contextlib
from pathlib import Path

from insula.errors import DamagedRecord
from insula.images.record import Image
from insula.store import names
from insula.store.names import Home
from insula.store.sums import is_as_stamped, read_stamps, stamp_file, write_stamps


def verify(home: Home, image: Image) -> None:
    """Hash every file of ``image``. Raises DamagedRecord (``image_tampered``); on success later checks are quick."""
    stamps = {}
    for name, expected in sorted(image.record.files.items()):
        try:
            stamp = stamp_file(image.folder / name)
        except OSError as cause:
            raise _tampered(image, name, "cannot be read") from cause
        if (stamp.size, stamp.sha256) != (expected.size, expected.sha256):
            raise _tampered(image, name, "is not what was built")
        stamps[name] = stamp
    write_stamps(stamps_path(home, image.digest), stamps)


def ensure_verified(home: Home, image: Image) -> None:
    """Like ``verify``, but instant when nothing changed since the last time. Raises DamagedRecord (``image_tampered``)."""
    stamps = read_stamps(stamps_path(home, image.digest))
    if not all(is_as_stamped(image.folder / name, stamps.get(name), expected) for name, expected in image.record.files.items()):
        verify(home, image)


def stamps_path(home: Home, digest: str) -> Path:
    """Where it is noted how an image's files looked: outside the images."""
    return home.host / names.VERIFIED / f"{digest}.json"


def forget(home: Home, digest: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        stamps_path(home, digest).unlink()


def _tampered(image: Image, name: str, why: str) -> DamagedRecord:
    return DamagedRecord(
        f"the image '{image.name}' was tampered with: {image.folder / name} {why}",
        code="image_tampered",
        hint=f"build it again: insula image build --refresh {image.name}",
    )
