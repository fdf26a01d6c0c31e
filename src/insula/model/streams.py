"""What flows beside a request: standard input and output, signals, the size of a window.

This is the interface that `guest` pumps and `client` implements. It says nothing about terminals, descriptors of a
program or connections, so that any transport can stand behind it: a local terminal, bytes in memory, a WebSocket.
Nothing here blocks: who pumps asks for descriptors to wait on, and calls `read`, `write` and `take` when they are ready.

    Source ── read ──▶ guest's standard input        (descriptor polls readable)
    Sink  ◀── write ── guest's output, and errors    (descriptor polls writable)
    Controls ─ take ─▶ signals and window sizes      (descriptor polls readable)
"""

from __future__ import annotations

# Loading `typing` takes as long as asking a guest for its answer; type checkers take this constant to be true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object


class Signal:
    """Send this signal to the program in the guest. ``name`` is without SIG: ``INT``."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Signal) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"Signal({self.name!r})"


class Resize:
    """The window has this size now, in characters."""

    __slots__ = ("columns", "rows")

    def __init__(self, rows: int, columns: int) -> None:
        self.rows = rows
        self.columns = columns

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Resize) and (self.rows, self.columns) == (other.rows, other.columns)

    def __hash__(self) -> int:
        return hash((self.rows, self.columns))

    def __repr__(self) -> str:
        return f"Resize({self.rows}, {self.columns})"


Control = Signal | Resize


class Source(Protocol):
    """Where bytes come from."""

    def fileno(self) -> int | None:
        """A descriptor that polls readable once `read` has something to say; None when it always has."""

    def read(self, most: int) -> bytes | None:
        """Up to ``most`` bytes; empty at the end; None when there is nothing just now. Never waits."""


class Sink(Protocol):
    """Where bytes go."""

    def fileno(self) -> int | None:
        """A descriptor that polls writable once `write` takes something; None when it always does."""

    def write(self, data: memoryview) -> int:
        """Take some of ``data`` and return how many bytes; 0 when there is no room just now.

        Raises BrokenPipeError when nobody will ever read it.
        """


class Controls(Protocol):
    """Where signals and window sizes come from."""

    def fileno(self) -> int | None:
        """A descriptor that polls readable once `take` has something; None when it never will."""

    def take(self) -> Control | None:
        """The next one, or None when there is none just now."""


class Streams(Protocol):
    """All that flows beside one request. ``stdin`` None: closed, the program finds its input at its end."""

    @property
    def stdin(self) -> Source | None: ...

    @property
    def stdout(self) -> Sink: ...

    @property
    def stderr(self) -> Sink: ...

    @property
    def controls(self) -> Controls: ...

    def close(self) -> None:
        """Give back what was taken: above all, leave a terminal as it was found. May be called twice."""
