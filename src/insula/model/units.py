"""Sizes and times as people write them."""

from __future__ import annotations

import re

from insula.errors import UsageError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

_FACTORS = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": 1024 * GIB}
_SIZE = re.compile(r"([0-9]{1,20})(?:\.([0-9]{1,20}))?\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes for ``512M``, ``2GiB``, ``1.5g`` or ``4096``: powers of 1024. Raises UsageError (``bad_size``)."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"'{text}' is not a size", code="bad_size", hint="write it like 512M or 10G")
    part = match[2] or ""
    scale: int = 10 ** len(part)
    return int(match[1] + part) * _FACTORS[match[3].lower()] // scale


def format_size(count: int) -> str:
    """``count`` bytes for a table: three digits at most, powers of 1024."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
