"""The kernel's merging of equal pages (KSM): one page in the place of all with the same in them, of processes that allow it.

It is one switch for the whole host. Sources: the kernel's Documentation/admin-guide/mm/ksm.rst.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_FOLDER: Final = Path("/sys/kernel/mm/ksm")
_STOP, _RUN, _UNDO = 0, 1, 2


def can_merge() -> bool:
    """Whether we may turn it on here."""
    return os.access(_FOLDER / "run", os.W_OK)


def is_merging() -> bool:
    return _read("run") == _RUN


def rounds() -> int:
    """How often it has been through all pages so far."""
    return _read("full_scans")


def merge(yes: bool) -> None:
    """Turn it on, or have it look no further; what is merged stays so. Raises OSError."""
    _write("run", _RUN if yes else _STOP)


def undo() -> None:
    """Turn it off, and give everybody pages of their own again. Raises OSError."""
    _write("run", _UNDO)


def pace() -> int:
    """How many pages it looks at each time it wakes up."""
    return _read("pages_to_scan")


def keep_pace(pages: int) -> None:
    """Have it look at so many. Raises OSError."""
    _write("pages_to_scan", pages)


@contextlib.contextmanager
def hastened(pages: int, former: int) -> Iterator[None]:
    """Within the context it looks at so many pages each time it wakes up, afterwards at ``former`` again."""
    with contextlib.suppress(OSError):
        keep_pace(pages)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            keep_pace(former)


def _read(name: str) -> int:
    try:
        return int((_FOLDER / name).read_text())
    except (OSError, ValueError):
        return 0


def _write(name: str, value: int) -> None:
    (_FOLDER / name).write_text(f"{value}\n")
