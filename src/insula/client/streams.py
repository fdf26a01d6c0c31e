"""What flows beside a request, as `model.streams` defines it, for callers on this computer.

    TerminalStreams     the user's terminal, in raw mode
    PipeStreams         descriptors, by default our own standard input, output and errors
    MemoryStreams       bytes in, bytes out
    CallbackStreams     functions that are called with output; input and signals given by any thread

All are context managers. `close` gives everything back, above all the terminal's mode, and may be called twice.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from types import FrameType

from insula.client.ends import (
    PASSED,
    CallbackSink,
    ControlQueue,
    DescriptorSink,
    DescriptorSource,
    DropSink,
    EscapableSource,
    Handlers,
    MemorySink,
    MemorySource,
    NoControls,
    PassedSignals,
    QueueSource,
    is_open,
    sink_for,
)
from insula.errors import Interrupted, UsageError
from insula.model.streams import Controls, Resize, Signal, Sink, Source

TYPE_CHECKING = False  # as in typing, which takes long to load
if TYPE_CHECKING:
    from typing import Any, Self

MEMORY_LIMIT = 256 << 20


class LocalStreams:
    """What all kinds have in common."""

    stdin: Source | None
    stdout: Sink
    stderr: Sink
    controls: Controls

    def close(self) -> None:
        """Give back what was taken."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PipeStreams(LocalStreams):
    """Descriptors as they are: pipes, files, sockets, a terminal in its usual mode. None, or a closed one: no such stream.

    ``signals`` that this process gets are passed to the guest instead. Who presses Ctrl-C three times within three seconds
    is heard here: Interrupted is raised, and the program is hung up.
    """

    def __init__(
        self,
        stdin: int | None = 0,
        stdout: int | None = 1,
        stderr: int | None = 2,
        *,
        signals: tuple[str, ...] = PASSED,
    ) -> None:
        self.stdin = DescriptorSource(stdin) if stdin is not None and is_open(stdin) else None
        self._sinks = [sink_for(-1 if descriptor is None else descriptor) for descriptor in (stdout, stderr)]
        self.stdout, self.stderr = self._sinks
        self._queue = ControlQueue()
        self.controls = self._queue
        self._signals = PassedSignals(lambda name: self._queue.put(Signal(name)), signals)

    def close(self) -> None:
        self._signals.restore()
        self._queue.close()
        for sink in self._sinks:
            sink.close()


class TerminalStreams(LocalStreams):
    """The user's terminal in raw mode: every key goes to the guest, and the window's size follows ours.

    When ``escape`` (one byte, as b"\\x1d" for Ctrl-]) is typed, Interrupted (``detached``) is raised. So it is (``interrupted``)
    when this process is asked to end, so that the caller's `close` leaves the terminal as it was. Raises UsageError
    (``not_a_terminal``).
    """

    def __init__(self, stdin: int = 0, stdout: int = 1, *, escape: bytes = b"") -> None:
        import termios

        if not (os.isatty(stdin) and os.isatty(stdout)):
            raise UsageError("standard input and output are not a terminal", code="not_a_terminal", hint="leave out --tty")
        self._terminal = stdin
        self._window = stdout
        self._former: list[Any] | None = termios.tcgetattr(stdin)
        self.stdin = EscapableSource(stdin, escape)
        self._sink = DescriptorSink(stdout)
        self.stdout = self.stderr = self._sink
        self._queue = ControlQueue()
        self.controls = self._queue
        self._handlers = Handlers()
        self._handlers.set(signal.SIGWINCH, self._resized)
        self._handlers.set(signal.SIGCONT, self._continued)
        for number in (signal.SIGTERM, signal.SIGHUP):
            self._handlers.set(number, _asked_to_end)
        self._make_raw()

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns; 24 and 80 when the terminal does not know."""
        columns, rows = os.get_terminal_size(self._window)
        return rows or 24, columns or 80

    def _make_raw(self) -> None:
        import termios
        import tty

        # Now, not after the output drained: a terminal that is stopped by Ctrl-S would hold us here.
        tty.setraw(self._terminal, termios.TCSANOW)

    def _resized(self, _number: int, _frame: FrameType | None) -> None:
        self._queue.put(Resize(*self.size))

    def _continued(self, number: int, frame: FrameType | None) -> None:
        """We were stopped, and the shell had the terminal meanwhile."""
        self._make_raw()
        self._resized(number, frame)

    def close(self) -> None:
        import termios

        self._handlers.restore()
        if self._former is not None:
            with contextlib.suppress(termios.error):  # when it went away, nothing is left to be put back
                termios.tcsetattr(self._terminal, termios.TCSANOW, self._former)
            self._former = None
        self._queue.close()
        self._sink.close()


def _asked_to_end(number: int, _frame: FrameType | None) -> None:
    raise Interrupted(f"ended by {signal.Signals(number).name}")


class MemoryStreams(LocalStreams):
    """``stdin`` is given at once (None: closed); afterwards ``output`` and ``errors`` hold what the program wrote.

    Each may grow to ``limit`` bytes; beyond that GuestError (``output_too_large``) is raised and the program hung up.
    """

    def __init__(self, stdin: bytes | None = None, *, limit: int = MEMORY_LIMIT) -> None:
        self.stdin = None if stdin is None else MemorySource(stdin)
        self._output, self._errors = MemorySink(limit), MemorySink(limit)
        self.stdout, self.stderr = self._output, self._errors
        self.controls = NoControls()

    @property
    def output(self) -> bytes:
        return bytes(self._output.value)

    @property
    def errors(self) -> bytes:
        return bytes(self._errors.value)


class CallbackStreams(LocalStreams):
    """Output goes to functions, called by the thread that runs the request; without them it is dropped.

    ``feed``, ``end_input``, ``signal`` and ``resize`` may be called by any thread, before and while the request runs. What a
    callback raises ends the request.
    """

    def __init__(self, stdout: Callable[[bytes], object] | None = None, stderr: Callable[[bytes], object] | None = None) -> None:
        self._input = QueueSource()
        self.stdin = self._input
        self.stdout = CallbackSink(stdout) if stdout else DropSink()
        self.stderr = CallbackSink(stderr) if stderr else DropSink()
        self._queue = ControlQueue()
        self.controls = self._queue

    def feed(self, data: bytes) -> None:
        """Give standard input; waits while much of it was not read yet. Raises BrokenPipeError after `close` or `end_input`."""
        self._input.feed(data)

    def end_input(self) -> None:
        self._input.end()

    def signal(self, name: str) -> None:
        """``name`` without SIG: ``INT``."""
        self._queue.put(Signal(name))

    def resize(self, rows: int, columns: int) -> None:
        self._queue.put(Resize(rows, columns))

    def close(self) -> None:
        self._input.close()
        self._queue.close()
