"""An empty qcow2 image, as bytes. Pure.

Each start of a machine needs one, and it is always the same few bytes; to start qemu-img for them took longer than all else that
is done on disk for a fork. Format: QEMU's ``docs/interop/qcow2.rst``, version 3. All integers are big-endian.

    cluster 0: header    1: table of refcount blocks    2: the refcount block    3 and on: the level 1 table, all zeros
"""

from __future__ import annotations

import struct
from typing import Final

_CLUSTER_BITS: Final = 16
CLUSTER: Final = 1 << _CLUSTER_BITS
_HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_HEADER_LENGTH: Final = 104
_REFCOUNT_ORDER: Final = 4  # 16 bits each
_TABLE_AT: Final = 3
# One entry of the level 1 table leads to a table of 8-byte entries that fills a cluster, each for a cluster of the disk.
_PER_ENTRY: Final = CLUSTER * (CLUSTER // 8)
_MOST_TABLE: Final = 32 << 20  # QEMU's own limit for that table


def empty_image(size: int) -> tuple[bytes, int]:
    """The beginning of an empty image of ``size`` bytes (a multiple of 512), and the length of the whole: zeros follow.

    Raises ValueError for a size that the format, or QEMU, does not take.
    """
    entries = -(-size // _PER_ENTRY)
    if size <= 0 or size % 512 or entries * 8 > _MOST_TABLE:
        raise ValueError(f"no qcow2 image can have {size} bytes")
    clusters = _TABLE_AT + -(-entries * 8 // CLUSTER)
    header = _HEADER.pack(
        b"QFI\xfb", 3, 0, 0, _CLUSTER_BITS, size, 0, entries, _TABLE_AT * CLUSTER, CLUSTER, 1, 0, 0, 0, 0, 0, _REFCOUNT_ORDER,
        _HEADER_LENGTH,
    )  # fmt: skip
    parts = (header, struct.pack(">Q", 2 * CLUSTER), struct.pack(">H", 1) * clusters)
    return b"".join(part.ljust(CLUSTER, b"\0") for part in parts), clusters * CLUSTER
