"""QEMU's mapped-ram file, read: which blocks of memory it holds and where. Pure but for reading.

The format is that of QEMU 9 and later, ``docs/devel/migration/mapped-ram.rst`` and ``migration/ram.c``: a migration stream's
head, a section ``ram`` that lists the blocks (name, length, then version, page size, and where the block's bitmap and pages are),
each entry of that list standing right behind the pages of the entry before. Integers are big-endian; a bitmap's words are not.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from insula.engines.qemu.pieces import PREFIX
from insula.errors import DamagedRecord

MAIN: Final = "m"  # the block that is the guest's memory, named after its backend
PAGE: Final = 4096

_HEAD: Final = 8192
_MAGIC: Final = struct.pack(">II", 0x5145564D, 3)
_SECTION: Final = b"\x03ram" + struct.pack(">I", 0)  # instance 0; the version follows
_FLAG_SIZE: Final = 0x04
_OFFSET_MASK: Final = ~(PAGE - 1)
_BLOCK_HEADER: Final = struct.Struct(">IQQQ")  # version, page size, offset of the bitmap, offset of the pages
_MOST_BLOCKS: Final = 256


class Block(msgspec.Struct, frozen=True):
    """One block of memory in the file: ``length`` in bytes, ``bitmap`` and ``pages`` as offsets into the file."""

    name: str
    length: int
    bitmap: int
    pages: int


def read_blocks(descriptor: int) -> list[Block]:
    """The blocks in the file. Raises DamagedRecord (``bad_memory_file``) when it is no such file."""
    head = os.pread(descriptor, _HEAD, 0)
    start = head.find(_SECTION)
    if not head.startswith(_MAGIC) or start < 0:
        raise _damaged("no list of blocks")
    position = start + len(_SECTION) + 4
    total = _unpack(">Q", head, position)
    if not total & _FLAG_SIZE:
        raise _damaged("no size")
    left, position = total & _OFFSET_MASK, position + 8
    blocks: list[Block] = []
    while left > 0:
        if len(blocks) == _MOST_BLOCKS:
            raise _damaged("too many blocks")
        block = _read_block(descriptor, position)
        blocks.append(block)
        left -= block.length
        position = block.pages + block.length
    return blocks


def _read_block(descriptor: int, position: int) -> Block:
    entry = os.pread(descriptor, 256 + 8 + _BLOCK_HEADER.size, position)
    if len(entry) < 2:
        raise _damaged("it ends early")
    end = 1 + entry[0]
    length = _unpack(">Q", entry, end)
    if len(entry) < end + 8 + _BLOCK_HEADER.size:
        raise _damaged("it ends early")
    version, page, bitmap, pages = _BLOCK_HEADER.unpack_from(entry, end + 8)
    if version != 1 or page != PAGE or not 0 < length < 1 << 50 or pages <= position:
        raise _damaged("a block makes no sense")
    return Block(entry[1:end].decode("ascii", "replace"), length, bitmap, pages)


def _unpack(layout: str, content: bytes, position: int) -> int:
    try:
        value: int = struct.unpack_from(layout, content, position)[0]
    except struct.error as cause:
        raise _damaged("it ends early") from cause
    return value


def block_pages(descriptor: int, block: Block) -> Iterator[tuple[int, bytes | None]]:
    """Each page of a block: its offset in the block and its content, None when it is all zeros."""
    bits = os.pread(descriptor, -(-block.length // PAGE // 64) * 8, block.bitmap)
    for page in range(block.length // PAGE):
        content = None
        if page // 8 < len(bits) and bits[page // 8] >> page % 8 & 1:
            content = os.pread(descriptor, PAGE, block.pages + page * PAGE)
        yield page * PAGE, content


def find_main(blocks: list[Block], size: int) -> Block:
    """The guest's memory. Raises DamagedRecord (``bad_memory_file``) unless it is ``size`` bytes long."""
    for block in blocks:
        if block.name == MAIN and block.length == size:
            return block
    raise _damaged("it does not hold the guest's memory")


def find_pieces(blocks: list[Block]) -> dict[str, int]:
    """Where the pieces of memory that were plugged in are, by their names: the offsets of their pages."""
    return {block.name.removeprefix(PREFIX): block.pages for block in blocks if block.name.startswith(PREFIX)}


def _damaged(what: str) -> DamagedRecord:
    return DamagedRecord(f"QEMU's memory file cannot be read: {what}", code="bad_memory_file")
