"""Digests of small things are those of everybody's SHA-256."""

from __future__ import annotations

import hashlib

import pytest

from insula.host.digest import digest_of


@pytest.mark.parametrize("data", [b"", b"abc", bytes(range(256)) * 1000])
def test_a_digest_is_the_librarys(data: bytes) -> None:
    assert digest_of(data) == hashlib.sha256(data).hexdigest()
