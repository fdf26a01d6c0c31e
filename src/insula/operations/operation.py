"""An operation: one verb under way, told about while it runs, and undone when it fails.

Each step is announced before it is done, and each step that changes something names its undo right after::

    with Steps(operation) as steps:
        steps.begin("make the disk")
        create_overlay(path, size)
        steps.undo(path.unlink)

Leaving the block by an exception runs the undos, last first; leaving it normally drops them.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

from insula.errors import Interrupted


class Progress(NamedTuple):
    """News of an operation: what it does now, and how far that is (0 to 1) when that is known. A ``warning`` is no step but
    something that its caller must know, whether or not he wants to hear of steps."""

    verb: str
    target: str
    step: str
    fraction: float | None = None
    warning: bool = False


class Operation:
    """One verb under way. ``listener`` is called in the thread that does the work, before each step and within long ones.

    ``unchanged``, at its end: nothing was left to do, because what was asked for was so already. ``remarks``: what was done to
    others on the way, each a sentence for whoever asked.
    """

    def __init__(self, verb: str, target: str = "", listener: Callable[[Progress], None] | None = None) -> None:
        self.id = os.urandom(8).hex()
        self.verb = verb
        self.target = target
        self.unchanged = False
        self.remarks: list[str] = []
        self._listener = listener
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Ask for an end: the next step is not begun, and what was done is undone."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def check(self) -> None:
        """Raises Interrupted when the operation was cancelled."""
        if self.cancelled:
            raise Interrupted(f"{self.verb} was cancelled")

    def wait(self, seconds: float) -> None:
        """Let time pass. Raises Interrupted as soon as the operation is cancelled."""
        self._cancelled.wait(max(0.0, seconds))
        self.check()

    def tell(self, step: str, fraction: float | None = None) -> None:
        """Announce what is done now. Raises Interrupted when the operation was cancelled."""
        self.check()
        if self._listener is not None:
            self._listener(Progress(self.verb, self.target, step, fraction))

    def warn(self, words: str) -> None:
        """Say what must be known."""
        if self._listener is not None:
            self._listener(Progress(self.verb, self.target, words, warning=True))


class Steps:
    """The steps of an operation, each followed by its undo."""

    def __init__(self, operation: Operation) -> None:
        self._operation = operation
        self._undos: list[Callable[[], object]] = []

    def begin(self, step: str) -> None:
        self._operation.tell(step)

    def undo(self, action: Callable[[], object]) -> None:
        """What takes back the step just done. It must be harmless when the thing is gone already."""
        self._undos.append(action)

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._undos.clear()
            return
        while self._undos:
            # An undo that fails must not hide the first error nor stop the others; what it leaves, the next verb sweeps.
            with contextlib.suppress(Exception):
                self._undos.pop()()
