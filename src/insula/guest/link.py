"""A connection to a machine's keeper, and through it to the agent in the guest: many channels, driven by one thread.

A `Link` moves bytes only while somebody calls one of its methods that may wait: `poll`, `call`, or a channel's `write`,
`next`, `finish`. It belongs to one thread; threads that work side by side open a link each, which costs next to nothing.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from insula.errors import GuestError, InsulaError, MachineEnded
from insula.guest import wire
from insula.guest.failures import failure
from insula.guest.wire import Fields, Frame, FrameReader, Value

SOCKET = "keeper.sock"
_RECEIVE = 262_144  # bytes asked of the socket at once
_BATCH = 2 * wire.PAYLOAD_MAX  # bytes handed to the socket at once


def open_link(run_folder: str | os.PathLike[str]) -> Link:
    """Connect to the keeper of the machine whose ``run/`` folder this is.

    Raises MachineEnded (``not_running``) when no keeper listens there.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        folder = os.open(run_folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # The address of a unix socket holds 107 bytes, paths are longer: go by the folder's descriptor.
            connection.connect(f"/proc/self/fd/{folder}/{SOCKET}")
        finally:
            os.close(folder)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as cause:
        connection.close()
        raise MachineEnded("the machine is not running", code="not_running") from cause
    except BaseException:
        connection.close()
        raise
    return Link(connection)


class Link:
    """See the module's docstring. ``connection`` is a connected stream socket; it belongs to the link from now on."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._reader = FrameReader()
        self._backlog: deque[memoryview] = deque()
        self._channels: dict[int, Channel] = {}
        self._last = 0

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection: the keeper hangs up all that was begun through it."""
        self._socket.close()
        self._channels.clear()

    def open(
        self, verb: str, fields: Sequence[tuple[str, Value]] = (), /, **more: Value | Sequence[Value] | None
    ) -> Channel:
        """Ask for ``verb``; the answer comes on the channel. ``fields`` go first, in their order."""
        payload = wire.encode_fields([("verb", verb), *fields, *more.items()])
        self._last += 1
        frame = wire.encode_frame(Frame(wire.OPEN, self._last, payload))
        channel = Channel(self, self._last, verb)
        self._channels[self._last] = channel
        self._queue(frame)
        return channel

    def call(
        self,
        verb: str,
        fields: Sequence[tuple[str, Value]] = (),
        /,
        *,
        timeout: float | None = None,
        subject: str = "",
        **more: Value | Sequence[Value] | None,
    ) -> Fields:
        """Ask for ``verb`` and return the answer, ``timeout`` seconds at most.

        Raises GuestError when it says `error` (the code tells which; ``subject`` names in messages what it is about) or
        did not come in time (``timeout``), AgentAbsent when no agent answers, MachineEnded when the machine is gone.
        """
        return self.open(verb, fields, **more).finish(timeout, subject)

    def poll(self, others: Mapping[int, int] | None = None, timeout: float | None = None) -> dict[int, int]:
        """Wait until frames came, or one of ``others`` (descriptor: events of select.poll) is ready, or ``timeout`` seconds.

        Sends what is waiting, takes in what came, returns which of ``others`` are ready. Raises MachineEnded when the
        connection is lost, GuestError (``garbled``) when what came is no frame.
        """
        poller = select.poll()
        own = self._socket.fileno()
        if own < 0:
            raise MachineEnded("the connection to the machine was closed", code="keeper_gone")
        poller.register(own, select.POLLIN | (select.POLLOUT if self._backlog else 0))
        for descriptor, events in (others or {}).items():
            poller.register(descriptor, events)
        ready = dict(poller.poll(None if timeout is None else max(0.0, timeout) * 1000))
        events = ready.pop(own, 0)
        if events & select.POLLOUT:
            self._flush()
        if events & ~select.POLLOUT:
            self._receive()
        return ready

    # -- for channels -----------------------------------------------------------------------------------------------------
    @property
    def clogged(self) -> bool:
        """Whether the socket has not yet taken all it was given."""
        return bool(self._backlog)

    def send_frame(self, frame: Frame) -> None:
        """Send a small frame; it waits in line when the socket is full."""
        self._queue(wire.encode_frame(frame))

    def send_data(self, channel: int, stream: int, data: memoryview) -> None:
        """Send one batch as DATA frames. What the socket does not take at once is kept as a copy."""
        parts: list[bytes | memoryview] = []
        for at in range(0, len(data), wire.PAYLOAD_MAX):
            piece = data[at : at + wire.PAYLOAD_MAX]
            parts += (wire.encode_header(wire.DATA, channel, len(piece), stream), piece)
        sent = 0 if self._backlog else self._sendmsg(parts)
        for part in parts:
            if sent < len(part):
                self._backlog.append(memoryview(bytes(part[sent:])))
            sent = max(0, sent - len(part))

    def forget(self, channel: int) -> None:
        self._channels.pop(channel, None)

    # -- the socket -----------------------------------------------------------------------------------------------------------
    def _queue(self, data: bytes) -> None:
        self._backlog.append(memoryview(data))
        self._flush()

    def _flush(self) -> None:
        while self._backlog:
            sent = self._sendmsg([self._backlog[i] for i in range(min(len(self._backlog), 64))])
            if sent == 0:
                return
            while sent:
                first = self._backlog.popleft()
                if sent < len(first):
                    self._backlog.appendleft(first[sent:])
                sent = max(0, sent - len(first))

    def _sendmsg(self, parts: Sequence[bytes | memoryview]) -> int:
        """How many bytes the socket took."""
        try:
            return self._socket.sendmsg(parts, (), socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except (BrokenPipeError, ConnectionResetError):
            # The other side is gone. An answer may still lie in the socket; once it is read, reading tells of the end.
            self._backlog.clear()
            return sum(map(len, parts))

    def _receive(self) -> None:
        try:
            untrusted_data = self._socket.recv(_RECEIVE)
        except BlockingIOError:
            return
        except ConnectionResetError:
            untrusted_data = b""
        if not untrusted_data:
            self.close()
            raise MachineEnded("the connection to the machine was lost", code="keeper_gone")
        for frame in self._reader.feed(untrusted_data):
            channel = self._channels.get(frame.channel)
            if channel is not None:
                channel.arrived(frame)


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
        self._window = [wire.WINDOW] * 3  # bytes we may still send, per stream
        self._granted = [wire.WINDOW] * 3  # bytes the other side may still send
        self._owed = [0] * 3  # bytes taken but not yet granted again

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
        """Send all of ``data``, waiting for room; False when the answer came first, so that nobody wants it any more."""
        view = memoryview(data)
        while len(view):
            sent = self.send(view, stream)
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

    def take(self) -> tuple[int, bytes] | None:
        """What came and was not taken yet: (stream, bytes), bytes being empty at the stream's end. None: nothing just now."""
        if not self._inbox:
            return None
        stream, data = self._inbox.popleft()
        self._owed[stream] += len(data)
        if self._owed[stream] >= wire.WINDOW // 2 and self.result is None:
            self._grant(stream, self._owed[stream])
            self._owed[stream] = 0
        return stream, data

    def next(self, timeout: float | None = None) -> tuple[int, bytes] | None:
        """As `take`, but wait for it; None once the answer is there and all before it was taken.

        Raises GuestError (``timeout``) when nothing came for ``timeout`` seconds; the channel is closed then.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._inbox and self.result is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                self.close()
                raise GuestError(f"no answer to '{self.verb}' within {timeout:g} s", code="timeout")
            self.link.poll(timeout=left)
        return self.take()

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        while (came := self.next()) is not None:
            yield came

    def finish(self, timeout: float | None = None, subject: str = "") -> Fields:
        """Wait for the answer and return it; data that comes before it is dropped. Raises as `Link.call`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.next(None if deadline is None else deadline - time.monotonic()) is not None:
            pass
        assert self.result is not None
        if "error" in self.result:
            raise self.failure(subject)
        return self.result

    def failure(self, subject: str = "") -> InsulaError:
        """The exception that the answer's `error` stands for."""
        assert self.result is not None
        return failure(self.result, subject or self.verb, exec_verb=self.verb == "exec")

    def arrived(self, untrusted_frame: Frame) -> None:
        """For the link: a frame of this channel came. What does not make sense here is ignored, as the protocol says."""
        stream = untrusted_frame.stream
        if untrusted_frame.type == wire.RESULT:
            self.result = wire.decode_fields(untrusted_frame.payload)
            self.link.forget(self._number)
        elif stream > wire.STDERR:
            return
        elif untrusted_frame.type == wire.DATA and untrusted_frame.payload:
            self._granted[stream] -= len(untrusted_frame.payload)
            if self._granted[stream] < 0:
                self.close()
                raise wire.garbled("more data than was allowed")
            self._inbox.append((stream, untrusted_frame.payload))
        elif untrusted_frame.type == wire.EOF:
            self._inbox.append((stream, b""))
        elif untrusted_frame.type == wire.CREDIT:
            more = wire.decode_credit(untrusted_frame.payload)
            self._window[stream] = min(self._window[stream] + more, wire.WINDOW_MAX)

    def _grant(self, stream: int, size: int) -> None:
        if size > 0:
            self._granted[stream] += size
            self._send(wire.CREDIT, wire.encode_credit(size), stream)
