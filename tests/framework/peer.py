"""The other side of a link, played by the test: it reads frames and answers what the test tells it to."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Sequence

from insula.guest import wire
from insula.guest.link import Link
from insula.guest.wire import Frame, FrameReader, Value


class Peer:
    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.link = Link(ours)
        self.socket = theirs
        self.socket.settimeout(5)
        self._reader = FrameReader()
        self._frames: deque[Frame] = deque()

    def read(self) -> Frame:
        """The next frame the link sent."""
        while not self._frames:
            data = self.socket.recv(1 << 20)
            assert data, "the link hung up"
            self._frames.extend(self._reader.feed(data))
        return self._frames.popleft()

    def send(self, kind: int, channel: int, payload: bytes = b"", stream: int = 0) -> None:
        self.socket.sendall(wire.encode_frame(Frame(kind, channel, payload, stream)))

    def result(self, channel: int, **fields: Value | Sequence[Value]) -> None:
        self.send(wire.RESULT, channel, wire.encode_fields(fields.items()))

    def close(self) -> None:
        self.link.close()
        self.socket.close()
