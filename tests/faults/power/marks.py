"""Marks in the stream of a disk's writes: what the doomed host was told, or told others, and when.

They are written past the end of the file system, directly, and are followed by no flush: so they say exactly between which other
writes something was acknowledged, and make nothing sure that was not.
"""

from __future__ import annotations

import json
import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.framework.write_log import WriteLog

FILE_SYSTEM: Final = 192 << 20  # bytes; the marks lie beyond
DISK: Final = FILE_SYSTEM + (4 << 20)
_SIZE: Final = 16384
_MAGIC: Final = b"MARK"


class Marker:
    """Writes marks to ``device``; by several threads if need be."""

    def __init__(self, device: Path) -> None:
        self._device = os.open(device, os.O_WRONLY | os.O_DIRECT)
        self._page = mmap.mmap(-1, _SIZE)  # what is written directly must be aligned
        self._lock = threading.Lock()
        self._count = 0

    def mark(self, kind: str, **details: Any) -> None:
        """On return the mark is in the log."""
        content = _MAGIC + json.dumps({"kind": kind, **details}).encode()
        assert len(content) < _SIZE, "too long for a mark"
        with self._lock:
            self._page[:] = content.ljust(_SIZE, b"\0")
            slots = (DISK - FILE_SYSTEM) // _SIZE
            os.pwrite(self._device, self._page, FILE_SYSTEM + self._count % slots * _SIZE)
            self._count += 1


def read_marks(log: WriteLog) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each mark, and the number of its request in the log."""
    for number, request in enumerate(log.requests):
        if request.at >= FILE_SYSTEM and request.length == _SIZE:
            content = bytes(log.data(request))
            assert content.startswith(_MAGIC)
            yield number, json.loads(content[len(_MAGIC) :].rstrip(b"\0"))
