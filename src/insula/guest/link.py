"""A connection to a machine's keeper, and through it to the agent in the guest: many channels, driven by one thread.

A `Link` moves bytes only while somebody calls one of its methods that may wait: `poll`, `call`, or a channel's `write`,
`next`, `finish`. It belongs to one thread; threads that work side by side open a link each, which costs next to nothing.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Mapping, Sequence

from insula.errors import GuestError, MachineEnded
from insula.guest import wire
from insula.guest.channel import Channel
from insula.guest.wire import Fields, Frame, FrameReader, Value

SOCKET = "keeper.sock"
_ROOM = 5.0  # seconds for a place in the queue of those who wait for the keeper
_FIRST_WORD = 10.0  # seconds within which a keeper that does its work has answered a greeting
_LEAST = 48  # to take a frame in costs as much as so many bytes of it
_SENDING = 1 << 20  # bytes to have room for between us and the keeper
_ITSELF = 0  # the channel on which the keeper speaks about the connection


def open_link(run_folder: str | os.PathLike[str]) -> Link:
    """Connect to the keeper of the machine whose ``run/`` folder this is.

    Raises MachineEnded (``not_running``) when no keeper listens there, GuestError (``keeper_silent``) when it accepts nobody.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # unix(7): connect waits for room in the listener's queue as long as a send would (socket(7), SO_SNDTIMEO).
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(_ROOM), 1))
        folder = os.open(run_folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # The address of a unix socket holds 107 bytes, paths are longer: go by the folder's descriptor.
            connection.connect(f"/proc/self/fd/{folder}/{SOCKET}")
        finally:
            os.close(folder)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as cause:
        connection.close()
        raise MachineEnded("the machine is not running", code="not_running") from cause
    except BlockingIOError as cause:
        connection.close()
        raise _silent() from cause
    except BaseException:
        connection.close()
        raise
    link = Link(connection)
    link.greet()
    return link


def _refused(untrusted_frame: Frame) -> GuestError:
    """The keeper sends nobody away but when it serves as many as it can."""
    if wire.decode_fields(untrusted_frame.payload).text("error") != "EBUSY":
        return wire.garbled("the keeper hung up for no known reason")
    return GuestError(
        "too many commands speak with the machine's keeper at once",
        code="keeper_busy",
        hint="wait until one of them has ended; 64 are served",
    )


def _silent() -> GuestError:
    hint = "insula stop --force NAME ends the machine all the same"
    return GuestError("the machine's keeper does not answer", code="keeper_silent", hint=hint)


class Link:
    """See the module's docstring. ``connection`` is a connected stream socket; it belongs to the link from now on."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        # More than the kernel grants anybody (net.core.wmem_max): it gives what it gives. Bulk then stops less often.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SENDING)
        self._socket = connection
        self._reader = FrameReader()
        self._backlog: deque[memoryview] = deque()
        self._channels: dict[int, Channel] = {}
        self._last = 0
        self._greeting: int | None = None  # the channel of a greeting not yet answered
        self._answers_until = 0.0  # when it must be
        self._useless = 0  # bytes that came and moved nothing on

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection: the keeper hangs up all that was begun through it."""
        self._socket.close()
        self._channels.clear()

    def greet(self) -> None:
        """Ask a keeper for a word, before the first request: one that never gives it is not waited for without end.

        Afterwards silence means nothing: a guest may be silent as long as it likes.
        """
        self._greeting = self._new_number()
        frame = Frame(wire.OPEN, self._greeting, wire.encode_fields([("verb", "keeper.status")]))
        self._backlog.append(memoryview(wire.encode_frame(frame)))
        self._answers_until = time.monotonic() + _FIRST_WORD

    def open(self, verb: str, fields: Sequence[tuple[str, Value]] = (), /, **more: Value | Sequence[Value] | None) -> Channel:
        """Ask for ``verb``; the answer comes on the channel. ``fields`` go first, in their order."""
        payload = wire.encode_fields([("verb", verb), *fields, *more.items()])
        number = self._new_number()
        channel = Channel(self, number, verb)
        self._channels[number] = channel
        self._queue(wire.encode_frame(Frame(wire.OPEN, number, payload)))
        return channel

    def _new_number(self) -> int:
        self._last += 1
        return self._last

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
        connection is lost, GuestError when what came is no frame (``garbled``) or a keeper that was greeted did not answer
        (``keeper_silent``), has no room for us (``keeper_busy``), or sends without end what nobody asked for (``keeper_floods``).
        """
        if self._greeting is not None:
            left = self._answers_until - time.monotonic()
            if left <= 0:
                self.close()
                raise _silent()
            timeout = left if timeout is None else min(timeout, left)
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
        self._reader.lending.discard(channel)

    def lend(self, channel: int) -> None:
        """From now on the data of this channel arrives as ``Frame.lent``, and holds good until something is received again."""
        self._reader.lending.add(channel)

    def take_in(self) -> bool:
        """Take in what is there now, without waiting; whether there was anything. Raises as `poll`."""
        return not self._backlog and self._greeting is None and self._socket.fileno() >= 0 and self._receive()

    # -- the socket -----------------------------------------------------------------------------------------------------------
    def _queue(self, data: bytes) -> None:
        if self._socket.fileno() >= 0:
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
            # The other side is gone: all counts as taken. An answer may still lie in the socket; once it is read, reading
            # tells of the end.
            return sum(map(len, parts))

    def _receive(self) -> bool:
        """Whether anything came."""
        for number in self._reader.lending:
            self._channels[number].keep()
        try:
            size = self._socket.recv_into(self._reader.space())
        except BlockingIOError:
            return False
        except ConnectionResetError:
            size = 0
        if not size:
            self.close()
            raise MachineEnded("the connection to the machine was lost", code="keeper_gone")
        for frame in self._reader.filled(size):
            if frame.channel == self._greeting:
                self._greeting = None
            if frame.channel == _ITSELF and frame.type == wire.RESULT:
                self.close()
                raise _refused(frame)
            channel = self._channels.get(frame.channel)
            if channel is None or not channel.arrived(frame):
                self._count_useless(len(frame.content))
        return True

    def _count_useless(self, size: int) -> None:
        """Of each channel that is over a window of every stream may still be under way. A keeper that sends more than that to no
        avail would keep us busy for ever."""
        self._useless += size + _LEAST
        if self._useless > self._last * 3 * wire.WINDOW_MAX:
            self.close()
            raise GuestError(
                "the machine's keeper sends without end what nobody asked for",
                code="keeper_floods",
                hint="insula stop --force NAME ends the machine all the same",
            )
