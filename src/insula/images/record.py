"""What is remembered of an image (``image.json``), and the image as the rest of Insula sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import msgspec

from insula.errors import DamagedRecord
from insula.images.recipe import Recipe
from insula.store import names
from insula.store.records import read_record
from insula.store.sums import FileSum

VERSION: Final = 1


class ImageRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``image.json``. ``key`` tells which question this image answered (see build.cache_key); ``created`` is UTC, ISO 8601."""

    version: int
    digest: str
    key: str
    arch: str
    created: str
    kernel: str
    disk_bytes: int
    recipe: Recipe
    files: dict[str, FileSum]


class Image(msgspec.Struct, frozen=True):
    """A finished image. Its files are immutable: link or read them, never write."""

    folder: Path
    record: ImageRecord

    @property
    def digest(self) -> str:
        return self.record.digest

    @property
    def name(self) -> str:
        return self.record.recipe.name

    @property
    def boot(self) -> Literal["disk", "direct"]:
        return self.record.recipe.boot

    @property
    def cmdline(self) -> str:
        """The kernel's command line, for direct boot."""
        return self.record.recipe.kernel.cmdline

    @property
    def root_layer(self) -> Path:
        return self.folder / names.ROOT_LAYER

    @property
    def kernel(self) -> Path:
        """For direct boot only."""
        return self.folder / names.KERNEL

    @property
    def initrd(self) -> Path:
        """For direct boot only."""
        return self.folder / names.INITRD

    @property
    def disk_bytes(self) -> int:
        """The virtual size of the root disk."""
        return self.record.disk_bytes

    @property
    def stored_bytes(self) -> int:
        """What the image takes on this host's disk."""
        return sum(entry.size for entry in self.record.files.values())


def read_image(folder: Path) -> Image:
    """The image in ``folder``. Raises FileNotFoundError or DamagedRecord."""
    record = read_record(folder / names.IMAGE_RECORD, ImageRecord)
    if record.version != VERSION:
        raise DamagedRecord(
            f"{folder / names.IMAGE_RECORD} has version {record.version}, this Insula reads {VERSION}",
            code="record_version",
            hint="use the Insula that wrote it, or delete the image and build it again",
        )
    if record.digest != folder.name:
        raise DamagedRecord(
            f"{folder} does not hold the image it is named after", code="image_tampered", hint="delete it and build it again"
        )
    return Image(folder, record)
