"""Turns a tree into an ext4 file system, without root and without mounting: mke2fs copies the tree in.

Features are named one by one, so that every version of mke2fs makes the same kind, one that GRUB 2.06 can read (no
``metadata_csum_seed``, no ``orphan_file``). All that is usually random comes from the image's digest.
"""

from __future__ import annotations

import uuid
from typing import Final

from insula.images.room import Room

_SPACE: Final = uuid.UUID("6ad6e0b6-3b0e-5f0b-9a7f-1f6f0a3c9d51")  # ours alone: a random number, fixed once
_FEATURES: Final = (
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum"
)
# A configuration of our own: the host's /etc/mke2fs.conf has no say.
_SCRIPT: Final = r"""
printf '[defaults]\nblocksize = 4096\n[fs_types]\next4 = {\nfeatures = has_journal\n}\n' > /tmp/mke2fs.conf
export MKE2FS_CONFIG=/tmp/mke2fs.conf E2FSPROGS_FAKE_TIME="$SOURCE_DATE_EPOCH"
tree=$1 target=$2 offset=$3 blocks=$4 uuid=$5 seed=$6 features=$7
truncate -s "$8" "$target"
mke2fs -q -F -t ext4 -b 4096 -I 256 -i 16384 -m 1 -L insula-root -U "$uuid" -O "$features" \
    -E "offset=$offset,hash_seed=$seed,root_owner=0:0,lazy_itable_init=0,lazy_journal_init=1,nodiscard" \
    -d "$tree" "$target" "$blocks"
chmod 0644 "$target"
"""


def derived_uuid(digest: str, use: str) -> str:
    """The UUID that an image's ``use`` (``root``, ``disk`` …) has: the same in every build of the same content."""
    return str(uuid.uuid5(_SPACE, f"{digest} {use}"))


def make_ext4(
    room: Room, tree: str, target: str, *, digest: str, size: int, offset: int = 0, total: int | None = None, fraction: float
) -> None:
    """Write ``tree`` as a file system of ``size`` bytes into ``target`` at ``offset``; both are paths in the room.

    ``total``: how long the file shall be. Raises as Room.run.
    """
    words = (tree, target, str(offset), str(size // 4096), derived_uuid(digest, "root"), derived_uuid(digest, "names"), _FEATURES)
    room.script(_SCRIPT, *words, str(total or offset + size), step="writing the file system", fraction=fraction)
