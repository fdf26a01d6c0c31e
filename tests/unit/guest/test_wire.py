"""Frames and fields: what was encoded decodes to the same, and nonsense is refused."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.errors import GuestError, UsageError
from insula.guest import wire
from insula.guest.wire import Frame, FrameReader

frames = st.lists(
    st.builds(Frame, st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=200), st.integers(0, 255)), max_size=8
)


def refusal(decode: Callable[[bytes], object], untrusted: bytes) -> str:
    """The code of the error that refused it, or nothing when it was taken."""
    try:
        decode(untrusted)
    except GuestError as error:
        return error.code
    return ""


@settings(max_examples=60, deadline=None)
@given(frames, st.integers(1, 40))
def test_frames_survive_any_way_of_cutting(sent: list[Frame], step: int) -> None:
    stream = b"".join(map(wire.encode_frame, sent))
    reader = FrameReader()
    got = [frame for at in range(0, len(stream), step) for frame in reader.feed(stream[at : at + step])]
    assert got == sent


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_gives_frames_or_guest_error(untrusted: bytes) -> None:
    assert refusal(FrameReader().feed, untrusted) in ("", "garbled")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_fields_give_fields_or_guest_error(untrusted: bytes) -> None:
    assert refusal(wire.decode_fields, untrusted) in ("", "garbled")


def test_header_is_as_documented() -> None:
    assert wire.encode_frame(Frame(wire.DATA, 7, b"ab", 2)) == bytes.fromhex("494e 02 02 07000000 02000000") + b"ab"


def test_largest_frame_passes_and_a_larger_one_is_refused() -> None:
    largest = Frame(wire.DATA, 1, bytes(wire.PAYLOAD_MAX), 1)
    assert FrameReader().feed(wire.encode_frame(largest)) == [largest]
    with pytest.raises(UsageError, match="64 KiB"):
        wire.encode_frame(Frame(wire.OPEN, 1, bytes(wire.PAYLOAD_MAX + 1)))
    with pytest.raises(GuestError, match="malformed"):
        FrameReader().feed(wire.encode_header(wire.DATA, 1, wire.PAYLOAD_MAX + 1))


def test_every_kind_of_field_comes_back_in_order() -> None:
    pairs: list[wire.Pair] = [
        ("verb", "exec"), ("argv", b"a"), ("argv", b"\xff"), ("code", 2**64 - 1), ("data", b"\0\1"), ("tty", 1)
    ]  # fmt: skip
    fields = wire.decode_fields(wire.encode_fields(pairs))
    assert list(fields) == pairs
    assert fields.raws("argv") == (b"a", b"\xff")
    assert (fields.text("verb"), fields.number("code"), fields.raw("data")) == ("exec", 2**64 - 1, b"\0\1")
    assert (fields.text("user", "x"), fields.number("uid", 3), "uid" in fields) == ("x", 3, False)


def test_sequences_repeat_and_none_is_left_out() -> None:
    encoded = wire.encode_fields([("argv", ("a", b"b")), ("cwd", None)])
    assert list(wire.decode_fields(encoded)) == [("argv", b"a"), ("argv", b"b")]


def test_nul_in_an_argument_is_refused() -> None:
    with pytest.raises(UsageError, match="NUL"):
        wire.encode_fields([("argv", "a\0b")])


def test_names_that_are_not_utf8_pass_as_they_are() -> None:
    name = os.fsdecode(b"caf\xe9")
    assert wire.decode_fields(wire.encode_fields([("path", name)])).raw("path") == b"caf\xe9"


def test_unknown_tags_are_ignored() -> None:
    assert list(wire.decode_fields(b"\xff\x7f\x01\0\0\0x" + wire.encode_fields([("code", 3)]))) == [("code", 3)]


@pytest.mark.parametrize(
    "untrusted",
    [b"\x01", b"\x01\0\x05\0\0\0abcd", b"\x14\0\x04\0\0\0abcd", b"\x0a\0\x03\0\0\0a\0b"],
    ids=["header cut", "content cut", "short number", "NUL in a path"],
)
def test_malformed_fields_are_refused(untrusted: bytes) -> None:
    with pytest.raises(GuestError) as caught:
        wire.decode_fields(untrusted)
    assert caught.value.code == "garbled"


def test_hello_is_found_behind_leftovers_of_a_former_life() -> None:
    nonce, other = bytes(range(16)), bytes(16)
    fields = wire.encode_fields([("arch", "amd64")])
    tail = b"\x01\0\0\0" + len(fields).to_bytes(4, "little") + fields
    stream = b"IN leftovers" + wire.SYNC_MARK + other + tail + wire.SYNC_MARK + nonce + tail + b"more"
    assert all(wire.find_hello(stream[:cut], nonce) is None for cut in range(len(stream) - 4))
    found = wire.find_hello(stream, nonce)
    assert found is not None
    assert (found[0].version, found[0].fields.text("arch"), stream[found[1] :]) == (1, "amd64", b"more")


def test_sync_is_as_documented() -> None:
    mark, versions = bytes.fromhex("89494E53554C410D0A1A0A53594E4300"), bytes.fromhex("0100 0100 00000000")
    assert wire.encode_sync(b"N" * 16) == bytes(65548) + mark + b"N" * 16 + versions
