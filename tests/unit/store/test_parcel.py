"""An exported snapshot as bytes: what goes in comes out, and nothing else is accepted."""

from __future__ import annotations

import io
import os
import tempfile
import zlib
from collections.abc import Callable
from typing import BinaryIO

import pytest

from insula.errors import InsulaError
from insula.host import sodium
from insula.model.transfer import Transfer
from insula.store import envelope, parcel
from insula.store.parcel import ParcelReader, ParcelWriter, data_ranges, write_at

SIZE = 8 << 20
MANIFEST = b'{"some": "manifest"}'


@pytest.fixture
def cheap_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least that Argon2id takes: what is tested is not how long it takes."""
    monkeypatch.setattr(envelope, "_PASSES", 1)
    monkeypatch.setattr(envelope, "_MEMORY", 8192)


def sparse_file() -> BinaryIO:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by who asked for it
    file.truncate(SIZE)
    os.pwrite(file.fileno(), b"x" * 100_001, 3 << 20)
    os.pwrite(file.fileno(), os.urandom(70_000), SIZE - 70_000)
    os.pwrite(file.fileno(), bytes(1 << 20), 1 << 20)  # written, and zeros all the same
    return file


def packed(passphrase: Callable[[], bytes] | None = None) -> bytes:
    out = io.BytesIO()
    writer = ParcelWriter(Transfer(out, passphrase))
    writer.manifest(MANIFEST)
    with sparse_file() as file:
        writer.file(file.fileno(), lambda _count: None)
    writer.end()
    return out.getvalue()


def unpack(content: bytes, passphrase: Callable[[], bytes] | None = None, most: int = 4 << 20) -> tuple[bytes, int]:
    """The file in a parcel, and the bytes it takes on the disk."""
    reader = ParcelReader(Transfer(io.BytesIO(content), passphrase))
    assert reader.manifest() == MANIFEST
    with tempfile.TemporaryFile() as file:
        reader.file(SIZE, most, write_at(file.fileno()))
        file.truncate(SIZE)
        reader.end()
        return os.pread(file.fileno(), SIZE, 0), os.fstat(file.fileno()).st_blocks * 512


@pytest.mark.parametrize("passphrase", [None, b"a secret"])
def test_what_goes_in_comes_out_and_holes_stay_holes(passphrase: bytes | None, cheap_keys: None) -> None:
    ask = None if passphrase is None else lambda: passphrase
    content = packed(ask)
    assert len(content) < 100_000
    found, used = unpack(content, ask)
    assert found[3 << 20 : (3 << 20) + 100_001] == b"x" * 100_001
    assert found[: 3 << 20] == bytes(3 << 20)
    assert used <= 512 << 10


def test_a_sealed_one_shows_nothing(cheap_keys: None) -> None:
    content = packed(lambda: b"a secret")
    assert MANIFEST not in content
    assert b"a secret" not in content
    assert packed(lambda: b"a secret") != content  # another salt each time


def code_of(work: Callable[[], object]) -> str:
    with pytest.raises(InsulaError) as refused:
        work()
    return refused.value.code


def test_passphrases(cheap_keys: None) -> None:
    content = packed(lambda: b"a secret")
    assert code_of(lambda: unpack(content, lambda: b"another")) == "wrong_passphrase"
    assert code_of(lambda: unpack(content)) == "passphrase_needed"


@pytest.mark.parametrize("sealed", [False, True])
def test_wherever_it_ends_early_it_is_refused(sealed: bool, cheap_keys: None) -> None:
    ask = (lambda: b"a secret") if sealed else None
    content = packed(ask)
    for length in {0, 5, 16, 18, 40, 100, 300, 1000, len(content) // 2, len(content) - 33, len(content) - 1}:
        assert code_of(lambda: unpack(content[:length], ask)) in ("parcel_truncated", "not_a_parcel")  # noqa: B023 - called at once


@pytest.mark.parametrize("sealed", [False, True])
def test_whichever_bit_flips_it_is_refused(sealed: bool, cheap_keys: None) -> None:
    ask = (lambda: b"a secret") if sealed else None
    content = packed(ask)
    places = {*range(0, 200, 7), *range(200, len(content), len(content) // 40), len(content) - 1}
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 0x10
        with pytest.raises((InsulaError, AssertionError)):  # the manifest's own bytes are compared by the test before the sum is
            unpack(bytes(changed), ask)


def test_something_behind_the_end(cheap_keys: None) -> None:
    for ask in (None, lambda: b"a secret"):
        content = packed(ask)
        assert code_of(lambda: unpack(content + b"x", ask)) == "parcel_damaged"  # noqa: B023 - called at once


def test_sealed_pieces_cannot_be_left_out_or_change_places(cheap_keys: None) -> None:
    sealer = sodium.Sealer(bytes(32))
    first, second = sealer.seal(b"one", b""), sealer.seal(b"two", b"", last=True)
    opener = sodium.Opener(bytes(32), sealer.header)
    with pytest.raises(sodium.Forged):
        opener.open(second, b"")
    assert opener.open(first, b"") == (b"one", False)
    assert opener.open(second, b"") == (b"two", True)
    with pytest.raises(sodium.Forged):
        sodium.Opener(bytes(32), sealer.header).open(first, b"another head")
    with pytest.raises(sodium.Forged):
        sodium.Opener(bytes(32), sealer.header).open(b"short", b"")


def body(*extents: bytes) -> bytes:
    import hashlib

    content = len(MANIFEST).to_bytes(4, "big") + MANIFEST + b"".join(extents)
    head = b'{"format":1,"seal":null}'
    return envelope.MAGIC + len(head).to_bytes(4, "big") + head + content + hashlib.sha256(content).digest()


def extent(offset: int, length: int, stored: bytes) -> bytes:
    return offset.to_bytes(8, "big") + length.to_bytes(4, "big") + len(stored).to_bytes(4, "big") + stored


END = extent(SIZE, 0, b"")


def test_the_test_itself_makes_good_ones() -> None:
    found, _ = unpack(body(extent(4096, 3, b"abc"), extent(SIZE - 3, 3, b"xyz"), END))
    assert found[4096:4099] + found[-3:] == b"abcxyz"


@pytest.mark.parametrize(
    "extents",
    [
        [extent(SIZE - 2, 3, b"abc"), END],  # beyond the end
        [extent(100, 3, b"abc"), extent(101, 3, b"abc"), END],  # one over the other
        [extent(100, 3, b"abc"), extent(0, 3, b"abc"), END],  # backwards
        [extent(0, 2 << 20, zlib.compress(bytes(2 << 20))), END],  # too long at once
        [extent(0, 1000, zlib.compress(bytes(1 << 20))), END],  # unpacks to more than announced: a bomb
        [extent(0, 1000, zlib.compress(b"x")), END],  # to less
        [extent(0, 1000, b"no zlib"), END],
        [extent(0, 3, b"abcd"), END],  # longer than it unpacks to
        [extent(1 << 63, 3, b"abc"), END],
        [extent(SIZE - 1, 0, b"")],  # of another size
        [*(extent(n << 20, 1 << 20, zlib.compress(b"x" * (1 << 20))) for n in range(5)), END],  # more data than announced
    ],
)
def test_hostile_extents(extents: list[bytes]) -> None:
    assert code_of(lambda: unpack(body(*extents))) == "parcel_damaged"


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (b'{"format":2,"seal":{"new":1}}', "parcel_too_new"),
        (b'{"format":1,"seal":{"cipher":"rot13"}}', "parcel_damaged"),
        (b"no json", "parcel_damaged"),
        (
            b'{"format":1,"seal":{"cipher":"xchacha20poly1305","kdf":"argon2id","passes":1000,"memory":8192,"salt":"","header":""}}',
            "parcel_damaged",
        ),
        (
            b'{"format":1,"seal":{"cipher":"xchacha20poly1305","kdf":"argon2id","passes":1,"memory":99999999999,"salt":"","header":""}}',
            "parcel_damaged",
        ),
        (
            b'{"format":1,"seal":{"cipher":"xchacha20poly1305","kdf":"argon2id","passes":1,"memory":8192,"salt":"00","header":"zz"}}',
            "parcel_damaged",
        ),
    ],
)
def test_hostile_heads(head: bytes, code: str) -> None:
    content = envelope.MAGIC + len(head).to_bytes(4, "big") + head
    assert code_of(lambda: ParcelReader(Transfer(io.BytesIO(content), lambda: b"x"))) == code


def test_lengths_are_bounded_before_anything_is_read() -> None:
    assert code_of(lambda: ParcelReader(Transfer(io.BytesIO(envelope.MAGIC + b"\xff" * 4)))) == "parcel_damaged"
    good = body()[: len(envelope.MAGIC) + 4 + len(b'{"format":1,"seal":null}')]
    reader = ParcelReader(Transfer(io.BytesIO(good + b"\xff" * 4)))
    assert code_of(reader.manifest) == "parcel_damaged"


def test_ranges_of_data_are_whole_pieces() -> None:
    with sparse_file() as file:
        ranges = list(data_ranges(file.fileno(), SIZE))
    assert all(start % parcel.PIECE == 0 for start, _ in ranges)
    assert ranges[-1][1] == SIZE
    assert sum(end - start for start, end in ranges) < SIZE // 2
