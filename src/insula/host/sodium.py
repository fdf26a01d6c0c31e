"""libsodium, of which two things are needed: a key from a passphrase, and a stream of sealed pieces.

It is the distribution's own library (Debian: libsodium23), so its security updates come the way all others do, and it is loaded
when something is sealed or opened and not before. The calls are those of its manual: "Password hashing" (Argon2id) and "Encrypted
streams and file encryption" (XChaCha20-Poly1305: pieces cannot be changed, dropped, repeated or put in another order unnoticed).
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

from insula.errors import HostLacks

_NAMES: Final = ("libsodium.so.23", "libsodium.so.26")  # 1.0.18, and 1.0.19 and later
_STREAM: Final = "crypto_secretstream_xchacha20poly1305"
KEY_BYTES: Final = 32
SALT_BYTES: Final = 16
HEADER_BYTES: Final = 24
SEAL_BYTES: Final = 17  # what a sealed piece is longer by
_STATE_BYTES: Final = 52
_MESSAGE: Final = 0
_FINAL: Final = 3
_ARGON2ID: Final = 2


class Forged(Exception):
    """A piece was not sealed with this key, or not at this place."""


def _load() -> ctypes.CDLL:
    for name in _NAMES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        expected = ((f"{_STREAM}_keybytes", KEY_BYTES), (f"{_STREAM}_headerbytes", HEADER_BYTES),
                    (f"{_STREAM}_abytes", SEAL_BYTES), (f"{_STREAM}_statebytes", _STATE_BYTES),
                    ("crypto_pwhash_saltbytes", SALT_BYTES))  # fmt: skip
        for function, _ in expected:
            getattr(library, function).restype = ctypes.c_size_t
        if library.sodium_init() >= 0 and all(getattr(library, function)() == size for function, size in expected):
            return library
    raise HostLacks(
        "encryption needs libsodium, which is not installed", code="program_missing", hint="run: apt-get install libsodium23"
    )


def derive_key(passphrase: bytes, salt: bytes, passes: int, memory: int) -> bytes:
    """The key that a passphrase leads to, by Argon2id with ``passes`` over ``memory`` bytes.

    Raises HostLacks (``program_missing``; ``no_memory`` when the host has not that much).
    """
    library = _load()
    key = ctypes.create_string_buffer(KEY_BYTES)
    failed = library.crypto_pwhash(
        key,
        ctypes.c_ulonglong(KEY_BYTES),
        passphrase,
        ctypes.c_ulonglong(len(passphrase)),
        salt,
        ctypes.c_ulonglong(passes),
        ctypes.c_size_t(memory),
        ctypes.c_int(_ARGON2ID),
    )
    if failed:
        raise HostLacks(f"this host has no {memory} bytes of memory to make the key with", code="no_memory")
    return key.raw


def random_salt() -> bytes:
    return os.urandom(SALT_BYTES)


class Sealer:
    """Seals pieces one after the other. ``header`` is what an `Opener` needs, and no secret."""

    def __init__(self, key: bytes) -> None:
        self._library = _load()
        self._state = ctypes.create_string_buffer(_STATE_BYTES)
        header = ctypes.create_string_buffer(HEADER_BYTES)
        self._library[f"{_STREAM}_init_push"](self._state, header, key)
        self.header = header.raw

    def seal(self, piece: bytes, beside: bytes, *, last: bool = False) -> bytes:
        """The sealed piece. ``beside`` is not in it, but must be the same when it is opened."""
        sealed = ctypes.create_string_buffer(len(piece) + SEAL_BYTES)
        self._library[f"{_STREAM}_push"](
            self._state, sealed, None, piece, ctypes.c_ulonglong(len(piece)), beside, ctypes.c_ulonglong(len(beside)),
            ctypes.c_ubyte(_FINAL if last else _MESSAGE),
        )  # fmt: skip
        return sealed.raw


class Opener:
    """Opens what a `Sealer` sealed, in the same order."""

    def __init__(self, key: bytes, header: bytes) -> None:
        if len(header) != HEADER_BYTES:
            raise Forged
        self._library = _load()
        self._state = ctypes.create_string_buffer(_STATE_BYTES)
        if self._library[f"{_STREAM}_init_pull"](self._state, header, key):
            raise Forged

    def open(self, sealed: bytes, beside: bytes) -> tuple[bytes, bool]:
        """The piece, and whether it is the last. Raises Forged."""
        if len(sealed) < SEAL_BYTES:
            raise Forged
        piece = ctypes.create_string_buffer(max(1, len(sealed) - SEAL_BYTES))
        tag = ctypes.c_ubyte()
        failed = self._library[f"{_STREAM}_pull"](
            self._state, piece, None, ctypes.byref(tag), sealed, ctypes.c_ulonglong(len(sealed)), beside,
            ctypes.c_ulonglong(len(beside)),
        )  # fmt: skip
        if failed:
            raise Forged
        return piece.raw[: len(sealed) - SEAL_BYTES], tag.value == _FINAL
