"""The ends that streams are made of: where bytes and control events come from, and where bytes go."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import stat
import time
from collections import deque
from collections.abc import Callable
from types import FrameType

from insula.errors import GuestError, Interrupted
from insula.model.streams import Control

PIECE = 4096  # a pipe that polls writable takes so much without waiting (pipe(7), PIPE_BUF)
BULK = 1 << 20
PASSED = ("INT", "TERM", "HUP", "QUIT")  # signals that are meant for the program in the guest
_INSISTENCE = 3  # times Ctrl-C within _INSISTENCE_SECONDS until we end ourselves, whatever the guest makes of it
_INSISTENCE_SECONDS = 3.0

Handler = Callable[[int, FrameType | None], object] | int | None


# -- controls ------------------------------------------------------------------------------------------------------------------
class NoControls:
    """Nobody sends signals or changes the window."""

    def fileno(self) -> None:
        return None

    def take(self) -> None:
        return None


class ControlQueue:
    """Signals and window sizes, put in by signal handlers and other threads."""

    def __init__(self) -> None:
        self._queue: deque[Control] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def put(self, control: Control) -> None:
        """From any thread or signal handler."""
        if self._event >= 0:
            self._queue.append(control)
            os.eventfd_write(self._event, 1)

    def fileno(self) -> int:
        return self._event

    def take(self) -> Control | None:
        if not self._queue:
            clear_event(self._event)
        # What was put in between is seen here, or has set the event again.
        return self._queue.popleft() if self._queue else None

    def close(self) -> None:
        if self._event >= 0:
            os.close(self._event)
            self._event = -1


def clear_event(event: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(event)


class Handlers:
    """Signal handlers that are put back as they were. Python allows them in its main thread only; elsewhere there are none."""

    def __init__(self) -> None:
        self._former: dict[int, Handler] = {}

    def set(self, number: int, handler: Handler) -> None:
        try:
            former = signal.signal(number, handler)
        except ValueError:  # not the main thread: signals are another's business
            return
        self._former.setdefault(number, former)

    def restore(self) -> None:
        while self._former:
            number, handler = self._former.popitem()
            # None: it was not set from Python, and cannot be put back from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class PassedSignals:
    """Signals that this process gets are given to ``put`` by name (``INT``) instead, until `restore`.

    Who presses Ctrl-C three times within three seconds is heard here: Interrupted is raised.
    """

    def __init__(self, put: Callable[[str], object], signals: tuple[str, ...] = PASSED) -> None:
        self._put = put
        self._interrupts: deque[float] = deque(maxlen=_INSISTENCE)
        self._handlers = Handlers()
        for name in signals:
            self._handlers.set(signal.Signals[f"SIG{name}"], self._pass_on)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            self._interrupts.append(now)
            if len(self._interrupts) == _INSISTENCE and now - self._interrupts[0] < _INSISTENCE_SECONDS:
                raise Interrupted("interrupted; the program in the guest was hung up")
        self._put(signal.Signals(number).name.removeprefix("SIG"))

    def restore(self) -> None:
        self._handlers.restore()


# -- descriptors ---------------------------------------------------------------------------------------------------------------
class DescriptorSource:
    """Reads a descriptor of any kind without ever waiting, though it may be a blocking one. It stays the caller's."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poller = select.poll()
        self._poller.register(descriptor, select.POLLIN)

    def fileno(self) -> int:
        return self._descriptor

    def read(self, most: int) -> bytes | None:
        if not self._poller.poll(0):
            return None
        try:
            return os.read(self._descriptor, most)
        except BlockingIOError:
            return None
        except OSError as cause:
            if cause.errno == errno.EIO:  # the terminal went away
                return b""
            raise


class DescriptorSink:
    """Writes a descriptor of any kind without ever waiting in the write. The descriptor stays the caller's.

    Terminals and pipes are opened once more, because O_NONBLOCK set on a descriptor that we share with a shell would hold
    for the shell, too. Where that is not allowed, small pieces are written, each after the descriptor polled writable.
    """

    def __init__(self, descriptor: int) -> None:
        mode = os.fstat(descriptor).st_mode
        self._waits = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)
        self._own = _open_again(descriptor) if self._waits and not stat.S_ISSOCK(mode) else -1
        self._descriptor = self._own if self._own >= 0 else descriptor
        self._most = PIECE if self._waits and self._own < 0 else BULK

    def fileno(self) -> int | None:
        return self._descriptor if self._waits else None

    def write(self, data: memoryview) -> int:
        try:
            return os.write(self._descriptor, data[: self._most])
        except BlockingIOError:
            return 0

    def close(self) -> None:
        if self._own >= 0:
            os.close(self._own)
            self._own = self._descriptor = -1


def _open_again(descriptor: int) -> int:
    """The same pipe or terminal with an open file description of our own, or -1 where that cannot be."""
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return -1


class DropSink:
    """Takes everything and keeps nothing: for an output that was closed before we began."""

    def fileno(self) -> None:
        return None

    def write(self, data: memoryview) -> int:
        return len(data)

    def close(self) -> None:
        """Nothing is held."""


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def sink_for(descriptor: int) -> DescriptorSink | DropSink:
    return DescriptorSink(descriptor) if is_open(descriptor) else DropSink()


class EscapableSource(DescriptorSource):
    """A terminal's keys, one of which ends the session instead of being passed on."""

    def __init__(self, descriptor: int, escape: bytes) -> None:
        super().__init__(descriptor)
        self._escape = escape
        self._escaped = False

    def read(self, most: int) -> bytes | None:
        if self._escaped:
            raise Interrupted("left", code="detached")
        data = super().read(most)
        if data is None or not self._escape or self._escape not in data:
            return data
        self._escaped = True
        before = data.partition(self._escape)[0]
        return before or self.read(most)


# -- memory and functions ------------------------------------------------------------------------------------------------------
class MemorySource:
    def __init__(self, data: bytes) -> None:
        self._rest = memoryview(data)

    def fileno(self) -> None:
        return None

    def read(self, most: int) -> bytes:
        data, self._rest = self._rest[:most], self._rest[most:]
        return bytes(data)


class MemorySink:
    """Keeps what is written in ``value``, ``limit`` bytes at most: a guest must not be able to fill our memory."""

    def __init__(self, limit: int) -> None:
        self.value = bytearray()
        self._limit = limit

    def fileno(self) -> None:
        return None

    def write(self, data: memoryview) -> int:
        if len(self.value) + len(data) > self._limit:
            raise GuestError(
                f"the program's output is larger than {self._limit} bytes", code="output_too_large", hint="take it as a stream"
            )
        self.value += data
        return len(data)


class CallbackSink:
    def __init__(self, callback: Callable[[bytes], object]) -> None:
        self._callback = callback

    def fileno(self) -> None:
        return None

    def write(self, data: memoryview) -> int:
        self._callback(bytes(data))
        return len(data)


class QueueSource:
    """Input given by other threads. ``feed`` waits while ``limit`` bytes wait to be read, so that nothing piles up."""

    def __init__(self, limit: int = BULK) -> None:
        import threading

        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._changed = threading.Condition()
        self._data = bytearray()
        self._limit = limit
        self._ended = False

    def feed(self, data: bytes) -> None:
        """Raises BrokenPipeError when nobody will read it any more."""
        with self._changed:
            while len(self._data) >= self._limit and self._event >= 0:
                self._changed.wait()
            if self._event < 0 or self._ended:
                raise BrokenPipeError(errno.EPIPE, "the program's input was closed")
            self._data += data
            os.eventfd_write(self._event, 1)

    def end(self) -> None:
        """Nothing more comes."""
        with self._changed:
            self._ended = True
            if self._event >= 0:
                os.eventfd_write(self._event, 1)

    def fileno(self) -> int:
        return self._event

    def read(self, most: int) -> bytes | None:
        with self._changed:
            data = bytes(self._data[:most])
            del self._data[:most]
            if not self._data and not self._ended:
                clear_event(self._event)
            self._changed.notify_all()
            return data or (b"" if self._ended else None)

    def close(self) -> None:
        with self._changed:
            if self._event >= 0:
                os.close(self._event)
                self._event = -1
            self._changed.notify_all()
