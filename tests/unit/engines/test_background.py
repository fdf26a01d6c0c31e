"""From when a guest may go on while its memory is written: seen in the beginning of QEMU's stream."""

from __future__ import annotations

import struct

import pytest

from insula.engines.qemu.background import has_begun

NUMBER = struct.pack(">I", 2)
HEAD = struct.pack(">II", 0x5145564D, 3) + b"\x07" + struct.pack(">I", 11) + b"pc-q35-10.0"
LISTED = b"\x01" + NUMBER + b"\x03ram" + struct.pack(">IIQ", 0, 4, 0x8000004) + b"\x01m" + struct.pack(">QQ", 0x8000000, 0x10)
FOOTER = b"\x7e" + NUMBER
OTHER = b"\x01" + struct.pack(">I", 7) + b"\x05other" + struct.pack(">II", 0, 1) + b"\x7e" + struct.pack(">I", 7)
PART = b"\x02" + NUMBER + struct.pack(">Q", 0x08) + b"\x01m"


@pytest.mark.parametrize("others", [b"", OTHER])
def test_it_is_the_first_part_of_the_memory(others: bytes) -> None:
    stream = HEAD + LISTED + FOOTER + others + PART
    begins = len(stream) - len(PART) + 5
    assert [length for length in range(len(stream) + 1) if has_begun(stream[:length])] == list(range(begins, len(stream) + 1))


def test_what_only_looks_like_it_is_not() -> None:
    assert not has_begun(b"\x03ram" + FOOTER + PART)
    assert not has_begun(HEAD + b"\x02" + NUMBER + b"\x03ram" + FOOTER + PART)
    assert not has_begun(HEAD + LISTED + PART)
