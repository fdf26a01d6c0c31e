"""What flows beside the export or import of a snapshot: the file's bytes, and who knows the passphrase."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO


class Transfer:
    """``file``: where the bytes go, or come from. ``passphrase``: asked when one is needed, and in no request, so that none is
    ever written down; None: an export is not encrypted, and an encrypted one cannot be imported."""

    __slots__ = ("file", "passphrase")

    def __init__(self, file: BinaryIO, passphrase: Callable[[], bytes] | None = None) -> None:
        self.file = file
        self.passphrase = passphrase
