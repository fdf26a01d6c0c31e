"""Guest text shown to people: nothing in it may reach a terminal as a command."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.model.text import clean


@pytest.mark.parametrize(
    ("untrusted", "shown"),
    [
        (b"plain text", "plain text"),
        ("größe ✓", "größe ✓"),
        (b"\x1b[2Jgone", "\\x1b[2Jgone"),
        (b"a\r\nb\tc\x00", "a\\r\\nb\\tc\\x00"),
        (b"\x9b31m", "\\x9b31m"),
        ("\x9b31m", "\\x9b31m"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("abc\u202efdp.exe", "abc\\u202efdp.exe"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("line\u2028end", "line\\u2028end"),
        ("\ud800", "\\ud800"),
    ],
)
def test_clean_shows_what_it_will_not_let_through(untrusted: bytes | str, shown: str) -> None:
    assert clean(untrusted) == shown


def test_clean_lines_keeps_line_ends_and_tabs_only() -> None:
    assert clean(b"a\n\tb\x1b\r", lines=True) == "a\n\tb\\x1b\\r"


def test_clean_cuts_what_is_too_long() -> None:
    assert clean(b"x" * 1000, longest=10) == "x" * 9 + "…"
    assert clean("ü" * 10, longest=10) == "ü" * 10


# st.text() would first spend a second on tables of its own.
anything = st.lists(st.integers(0, 0x10FFFF).map(chr), max_size=100).map("".join)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.binary(max_size=200), anything))
def test_clean_leaves_only_what_can_be_printed(untrusted: bytes | str) -> None:
    shown = clean(untrusted, longest=50)
    assert shown.isprintable() or not shown
    assert len(shown) <= 50
    shown.encode()


def test_what_is_too_long_ends_with_an_ellipsis() -> None:
    assert clean("x" * 200, longest=80) == "x" * 79 + "…"
