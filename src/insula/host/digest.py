"""SHA-256 of small things without what it costs to load OpenSSL, which is a tenth of what a command takes to begin."""

from __future__ import annotations

try:
    from _sha2 import sha256  # type: ignore[import-not-found,unused-ignore]  # CPython's own since 3.12; typeshed knows none of them
except ImportError:
    try:
        from _sha256 import sha256  # type: ignore[import-not-found,unused-ignore]  # and before; as in random.py of the library
    except ImportError:
        from hashlib import sha256


def digest_of(data: bytes) -> str:
    """The SHA-256 of ``data``, in 64 hex digits. For much data hashlib is several times as fast."""
    return str(sha256(data).hexdigest())
