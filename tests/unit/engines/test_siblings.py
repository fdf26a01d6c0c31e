"""A state for many: taken apart and put together again, the changes in the memory file."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.engines.qemu.memory import MAIN, PAGE, read_blocks
from insula.engines.qemu.siblings import compose_for, is_worth_it
from insula.engines.qemu.stream import Parts, compose, take_apart
from insula.errors import DamagedRecord
from insula.store import names

_DEVICES = struct.pack(">II", 0x5145564D, 3) + b"\x04 all the devices"
_PLACES = (PAGE, 6 * PAGE)  # of the blocks' pages in the file


def _page(letter: str) -> bytes:
    return letter.encode() * PAGE


_pages = st.lists(st.tuples(st.integers(0, 3).map(lambda number: number * PAGE), st.none() | st.just(_page("p"))), max_size=5)
_blocks = st.dictionaries(st.text(st.characters(codec="ascii"), max_size=9), _pages, max_size=4)


@given(_blocks, st.binary(max_size=40))
def test_what_was_put_together_is_taken_apart(blocks: dict[str, list[tuple[int, bytes | None]]], rest: bytes) -> None:
    given_blocks = [(name, 4 * PAGE, pages) for name, pages in blocks.items()]
    devices = _DEVICES + rest
    assert take_apart(compose(devices, "pc-q35-10.0", given_blocks)) == Parts(devices, "pc-q35-10.0", given_blocks)


_WHOLE = compose(_DEVICES, "pc-q35-10.0", [(MAIN, 2 * PAGE, [(0, _page("a")), (PAGE, None)])])


@given(st.integers(0, len(_WHOLE) - 1), st.integers(0, 255))
def test_nothing_else_is_believed(place: int, byte: int) -> None:
    for damaged in (_WHOLE[:place], _WHOLE[:place] + bytes([byte]) + _WHOLE[place + 1 :]):
        with contextlib.suppress(DamagedRecord):
            for _, length, pages in take_apart(damaged).blocks:
                assert all(offset % PAGE == 0 and offset + PAGE <= length for offset, _ in pages)


@pytest.mark.parametrize("damaged", [b"", _DEVICES, _WHOLE[:-1], _WHOLE[:30], b"x" + _WHOLE[1:]])
def test_what_is_no_such_state_is_said_so(damaged: bytes) -> None:
    with pytest.raises(DamagedRecord, match="not as Insula writes it"):
        take_apart(damaged)


def test_pages_outside_a_block_are_refused() -> None:
    with pytest.raises(DamagedRecord):
        take_apart(compose(_DEVICES, "pc-q35-10.0", [(MAIN, PAGE, [(PAGE, _page("a"))])]))


def _memory_file(path: Path, *blocks: str) -> None:
    """As QEMU writes one: a head, and each block of four pages behind the list's entry of it; pages b and c are there."""
    total = struct.pack(">Q", len(blocks) * 4 * PAGE | 4)
    place, head = 0, struct.pack(">II", 0x5145564D, 3) + b"\x03ram" + struct.pack(">II", 0, 4) + total
    with path.open("wb") as file:
        for name, pages in zip(blocks, _PLACES, strict=False):
            entry = bytes([len(name)]) + name.encode() + struct.pack(">Q", 4 * PAGE)
            file.seek(place)
            file.write((head if not place else b"") + entry + struct.pack(">IQQQ", 1, PAGE, pages - 8, pages))
            file.seek(pages + PAGE)
            file.write(_page("b") + _page("c"))
            place = pages + 4 * PAGE
        file.truncate(place)


def test_many_share_one_memory_with_all_changes_in_it(tmp_path: Path) -> None:
    origin, target = tmp_path / "origin", tmp_path / "target"
    origin.mkdir()
    target.mkdir()
    _memory_file(origin / names.MEMORY, MAIN, "screen")
    before = (origin / names.MEMORY).read_bytes()
    changes = [(0, _page("x")), (PAGE, None)]
    screen = [(0, _page("s")), (PAGE, None)]
    state = compose(_DEVICES, "pc-q35-10.0", [(MAIN, 4 * PAGE, changes), ("screen", 4 * PAGE, screen)])
    (origin / names.STATE).write_bytes(state)
    assert compose_for(100, origin, target)
    assert (origin / names.MEMORY).read_bytes() == before
    made = (target / names.MEMORY).read_bytes()
    assert made[: _PLACES[0]] == before[: _PLACES[0]]
    assert made[_PLACES[0] : _PLACES[0] + 4 * PAGE] == _page("x") + bytes(PAGE) + _page("c") + bytes(PAGE)
    assert made[_PLACES[0] + 4 * PAGE :] == before[_PLACES[0] + 4 * PAGE :], "of other blocks what is in the state holds"
    descriptor = os.open(target / names.MEMORY, os.O_RDONLY)
    try:
        assert [block.name for block in read_blocks(descriptor)] == [MAIN, "screen"]
    finally:
        os.close(descriptor)
    assert take_apart((target / names.STATE).read_bytes()) == Parts(_DEVICES, "pc-q35-10.0", [("screen", 4 * PAGE, screen)])


def test_few_have_what_changed_each_for_themselves(tmp_path: Path) -> None:
    origin, target = tmp_path / "origin", tmp_path / "target"
    origin.mkdir()
    target.mkdir()
    _memory_file(origin / names.MEMORY, MAIN)
    (origin / names.STATE).write_bytes(compose(_DEVICES, "pc-q35-10.0", [(MAIN, 4 * PAGE, [(0, _page("x"))])]))
    assert not compose_for(2, origin, target)
    assert list(target.iterdir()) == []


def test_when_that_is_less() -> None:
    assert is_worth_it(20, 6, 90)
    assert not is_worth_it(15, 6, 90)
    assert not is_worth_it(1, 1 << 30, 0)
