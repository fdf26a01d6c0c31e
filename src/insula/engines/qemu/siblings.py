"""What many machines that go on from one state share of its memory.

A state taken by its changed pages is a memory file and, in front of the devices, the pages that differ from it. Whoever loads
that has them as pages of its own, which is little for one and much for twenty. For many they are written once, into a copy of the
memory file that all of them map.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from insula.engines.qemu.memory import MAIN, Block, read_blocks
from insula.engines.qemu.pieces import PREFIX
from insula.engines.qemu.stream import compose, take_apart
from insula.host.holes import copy_sparse
from insula.store import names

_ZEROS: Final = bytes(4096)


def is_worth_it(count: int, changed: int, shared: int) -> bool:
    """Pure: whether ``count`` machines' own copies of ``changed`` bytes are more than those bytes once and ``shared`` ones."""
    return count * changed > changed + shared


def compose_for(count: int, origin: Path, target: Path) -> bool:
    """See `Engine.compose_for`."""
    memory, state = origin / names.MEMORY, origin / names.STATE
    if not is_worth_it(count, state.stat().st_size, memory.stat().st_blocks * 512):
        return False
    parts = take_apart(state.read_bytes())
    source = os.open(memory, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        there = {block.name: block for block in read_blocks(source) if block.name == MAIN or block.name.startswith(PREFIX)}
        made = os.open(target / names.MEMORY, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            copy_sparse(source, made)
            for name, length, pages in parts.blocks:
                if (block := there.get(name)) is not None and block.length == length:
                    _write_pages(made, block, pages)
        finally:
            os.close(made)
    finally:
        os.close(source)
    others = [each for each in parts.blocks if each[0] not in there]
    (target / names.STATE).write_bytes(compose(parts.devices, parts.machine, others))
    return True


def _write_pages(descriptor: int, block: Block, pages: list[tuple[int, bytes | None]]) -> None:
    for offset, content in pages:
        os.pwrite(descriptor, _ZEROS if content is None else content, block.pages + offset)
