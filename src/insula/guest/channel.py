"""One request under way, the streams that belong to it, and the credit that keeps either side from drowning the other."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping

from insula.errors import GuestError, InsulaError
from insula.guest import wire
from insula.guest.failures import failure
from insula.guest.wire import Fields, Frame

TYPE_CHECKING = False  # as in typing, which takes long to load
if TYPE_CHECKING:
    from insula.guest.link import Link

_BATCH = 2 * wire.PAYLOAD_MAX  # bytes handed to the link at once

# Seconds in which more of bulk comes: a look at each little piece would cost the guest the CPU it sends it with.
_GATHER = 0.0003


class Channel:
    """One request under way and the streams that belong to it. Made by `Link.open`.

    ``result`` is None until the answer came. Data is kept, a window's worth at most, until it is taken by `take`, `next`
    or by iterating; taking it is what lets the guest send more.
    """

    def __init__(self, link: Link, number: int, verb: str) -> None:
        self.link = link
        self.verb = verb
        self.result: Fields | None = None
        self._number = number
        self._inbox: deque[tuple[int, bytes]] = deque()
        self._pieces: deque[bytes | memoryview] | None = None  # instead of the inbox, for the stream that `pieces` yields
        self._whose = wire.STDOUT
        self._ended: set[int] = set()  # streams that will bring no more
        self._window = [wire.WINDOW] * 3  # bytes we may still send, per stream
        self._granted = [wire.WINDOW] * 3  # bytes the other side may still send
        self._owed = [0] * 3  # bytes taken but not yet granted again
        self._reach = [wire.WINDOW] * 3  # what the other side may have on the way at most

    # -- outwards ------------------------------------------------------------------------------------------------------------
    def room(self, stream: int = wire.STDIN) -> int:
        """Bytes `send` would take now."""
        return 0 if self.link.clogged or self.result is not None else min(self._window[stream], _BATCH)

    def send(self, data: bytes | memoryview, stream: int = wire.STDIN) -> int:
        """Send as much of ``data`` as there is room for, without waiting; returns how many bytes that was."""
        size = min(len(data), self.room(stream))
        if size:
            self._window[stream] -= size
            self.link.send_data(self._number, stream, memoryview(data)[:size])
        return size

    def write(self, data: bytes | memoryview, stream: int = wire.STDIN) -> bool:
        """Send all of ``data``, waiting for room; False when the answer came first, so that nobody wants it any more.

        Only the last frame is smaller than frames may be: the receiver writes whole pages of a file then.
        """
        view = memoryview(data)
        while view:
            wanted = min(len(view), wire.PAYLOAD_MAX)
            whole = self.room(stream) // wanted * wanted
            sent = self.send(view[:whole], stream) if whole else 0
            view = view[sent:]
            if self.result is not None:
                return False
            if not sent or self.link.clogged:
                self.link.poll()
        return True

    def eof(self, stream: int = wire.STDIN) -> None:
        """Nothing more comes on this stream."""
        self._send(wire.EOF, b"", stream)

    def signal(self, name: str) -> None:
        """``name`` without SIG: ``INT``."""
        self._send(wire.SIGNAL, name.encode("ascii", "replace"))

    def resize(self, rows: int, columns: int) -> None:
        self._send(wire.RESIZE, wire.encode_size(rows, columns))

    def close(self) -> None:
        """Give up: what runs in the guest is hung up. Nothing happens when the answer came already."""
        self._send(wire.CLOSE, b"")
        self.link.forget(self._number)

    def _send(self, kind: int, payload: bytes, stream: int = 0) -> None:
        if self.result is None:
            self.link.send_frame(Frame(kind, self._number, payload, stream))

    # -- inwards -------------------------------------------------------------------------------------------------------------
    def widen(self, stream: int = wire.STDOUT) -> None:
        """Allow the other side the largest window: for bulk, where a round trip per window would show."""
        self._grant(stream, wire.WINDOW_MAX - self._granted[stream] - self._owed[stream])
        self._reach[stream] = wire.WINDOW_MAX

    def take(self) -> tuple[int, bytes] | None:
        """What came and was not taken yet: (stream, bytes), bytes being empty at the stream's end. None: nothing just now."""
        if not self._inbox:
            return None
        stream, data = self._inbox.popleft()
        self._consumed(stream, len(data))
        return stream, data

    def pieces(self, stream: int = wire.STDOUT) -> Iterator[bytes | memoryview]:
        """The data of a stream until the answer is there: for bulk, since it is copied nowhere, and with the largest window.

        To be called before anything came. A piece holds good until the next one is asked for; no other way leads to this data.
        """
        self._pieces, self._whose = deque(), stream
        self.link.lend(self._number)
        self.widen(stream)
        while True:
            while self._pieces:
                piece = self._pieces.popleft()
                yield piece
                self._consumed(stream, len(piece))
            if self.result is not None:
                return
            if not self.link.take_in():
                time.sleep(_GATHER)
                if not self.link.take_in():
                    self.link.poll()

    def keep(self) -> None:
        """For the link: what it lent us it wants to use again now."""
        if self._pieces:
            self._pieces = deque(bytes(piece) for piece in self._pieces)

    def next(self, timeout: float | None = None) -> tuple[int, bytes] | None:
        """As `take`, but wait for it; None once the answer is there and all before it was taken.

        Raises GuestError (``timeout``) when nothing came for ``timeout`` seconds; the channel is closed then.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._inbox and self.result is None:
            self._wait(deadline)
        return self.take()

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        while (came := self.next()) is not None:
            yield came

    def finish(self, timeout: float | None = None, subject: str = "", folders: Mapping[bytes, bytes] | None = None) -> Fields:
        """Wait for the answer and return it; data that comes before it is dropped. Raises as `Link.call`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._inbox or self.result is None:
            if self.take() is None:
                self._wait(deadline)
        assert self.result is not None
        if "error" in self.result:
            raise self.failure(subject, folders)
        return self.result

    def failure(self, subject: str = "", folders: Mapping[bytes, bytes] | None = None) -> InsulaError:
        """The exception that the answer's `error` stands for; see `failures.failure`."""
        assert self.result is not None
        return failure(self.result, subject or self.verb, exec_verb=self.verb == "exec", folders=folders)

    def arrived(self, untrusted_frame: Frame) -> bool:
        """For the link: a frame of this channel came. What does not make sense here is ignored, as the protocol says.

        Returns whether it moved anything on.
        """
        stream = untrusted_frame.stream
        if untrusted_frame.type == wire.RESULT:
            self.result = wire.decode_fields(untrusted_frame.payload)
            self.link.forget(self._number)
        elif stream > wire.STDERR:
            return False
        elif untrusted_frame.type == wire.CREDIT:
            before = self._window[stream]
            self._window[stream] = min(before + wire.decode_credit(untrusted_frame.payload), wire.WINDOW_MAX)
            return self._window[stream] > before
        elif stream in self._ended:
            return False
        elif untrusted_frame.type == wire.DATA and untrusted_frame.content:
            self._granted[stream] -= len(untrusted_frame.content)
            if self._granted[stream] < 0:
                self.close()
                raise wire.garbled("more data than was allowed")
            if self._pieces is not None and stream == self._whose:
                self._pieces.append(untrusted_frame.content)
            else:
                self._inbox.append((stream, bytes(untrusted_frame.content)))
        elif untrusted_frame.type == wire.EOF:
            self._ended.add(stream)
            self._inbox.append((stream, b""))
        else:
            return False
        return True

    def _wait(self, deadline: float | None) -> None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            self.close()
            raise GuestError(f"no answer to '{self.verb}' in time", code="timeout")
        self.link.poll(timeout=left)

    def _consumed(self, stream: int, size: int) -> None:
        self._owed[stream] += size
        if self._owed[stream] >= min(self._reach[stream] // 2, wire.CREDIT_STEP) and self.result is None:
            self._grant(stream, self._owed[stream])
            self._owed[stream] = 0

    def _grant(self, stream: int, size: int) -> None:
        if size > 0:
            self._granted[stream] += size
            self._send(wire.CREDIT, wire.encode_credit(size), stream)
