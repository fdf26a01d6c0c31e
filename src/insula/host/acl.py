"""Access control lists of files, as extended attributes: acl(5). Who owns a file may let any group read it.

Format: Linux, ``include/uapi/linux/posix_acl_xattr.h`` and ``posix_acl.h``: a version, then an entry each for whom it is about,
little-endian, in this order.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

GROUP: Final = 0x08
_OWNER, _GROUP_OF_FILE, _MASK, _OTHERS = 0x01, 0x04, 0x10, 0x20
_READ: Final = 4
_NOBODY: Final = 0xFFFFFFFF  # where the entry's kind says whom it is about
_NAME: Final = "system.posix_acl_access"
_VERSION: Final = struct.pack("<I", 2)
_ENTRY: Final = struct.Struct("<HHI")

Entry = tuple[int, int, int]  # for whom, what may be done, which user or group


def readers(group: int) -> list[Entry]:
    """Pure: the owner and ``group`` may read, and that is all."""
    rows = [(_OWNER, _READ, _NOBODY), (_GROUP_OF_FILE, 0, _NOBODY), (GROUP, _READ, group), (_MASK, _READ, _NOBODY)]
    return [*rows, (_OTHERS, 0, _NOBODY)]


def list_of(file: Path) -> list[Entry]:
    """The list of ``file``; empty when it has none."""
    with contextlib.suppress(OSError):
        return list(_ENTRY.iter_unpack(os.getxattr(file, _NAME)[len(_VERSION) :]))
    return []


def set_list(file: Path, entries: Iterable[Entry]) -> None:
    """Give ``file``, which is ours, this list. Raises OSError, also where the file system keeps none."""
    os.setxattr(file, _NAME, _VERSION + b"".join(_ENTRY.pack(*entry) for entry in entries))
