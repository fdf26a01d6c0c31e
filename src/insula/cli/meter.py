"""How far a copy is, for people at a terminal: nothing is said elsewhere, and nothing of a copy that is done in no time."""

from __future__ import annotations

import time
from typing import Final

from insula.cli.render import ProgressLine
from insula.model.units import format_size
from insula.operations.operation import Progress

_PATIENCE: Final = 0.5  # seconds before anything is said
_PAUSE: Final = 0.1  # seconds between two times


class CopyMeter:
    """A meter as `guest.copying` has it. ``patience``: seconds a copy may take before anything is said of it."""

    def __init__(self, name: str, patience: float = _PATIENCE) -> None:
        self._name = name
        self._line = ProgressLine()
        self._begun = time.monotonic()
        self._next = self._begun + patience
        self._done = 0
        self._total: int | None = None

    def expect(self, total: int) -> None:
        self._total = total

    def __call__(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _PAUSE
        rate = format_size(int(self._done / max(now - self._begun, 0.001)))
        fraction = min(1.0, self._done / self._total) if self._total else None
        self._line(Progress("copy", self._name, f"{format_size(self._done)}, {rate}/s", fraction))

    def clear(self) -> None:
        """Take the line away."""
        self._line.clear()
