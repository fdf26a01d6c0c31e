"""What stands for a machine's keeper, and for the agent in its guest, on the doomed host: it answers as they do."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from insula.guest import wire
from insula.guest.wire import Fields, Frame, FrameReader
from insula.host.sockets import listen_unix

Answer = dict[str, str | int]


class Keeper:
    """Serves ``path``. ``state``, ``end`` and ``resume`` are the machine's."""

    def __init__(self, path: Path, state: Callable[[], str], end: Callable[[str], None], resume: Callable[[], None]) -> None:
        self._state, self._end, self._resume = state, end, resume
        self._ended = threading.Event()
        self._connections: set[socket.socket] = set()
        self._listener = listen_unix(path)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """The machine has ended: nobody listens any more, and whoever listened to us hears it."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._ended.set()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.add(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        reader, holds = FrameReader(), {}
        with contextlib.suppress(OSError), connection:
            while data := connection.recv(65536):
                for frame in reader.feed(data):
                    if frame.type == wire.OPEN:
                        asked = wire.decode_fields(frame.payload)
                        if asked.text("verb") == "keeper.hold":
                            holds[frame.channel] = asked.text("on_drop")
                            continue
                        answer = self._answer(asked)
                        connection.sendall(
                            wire.encode_frame(Frame(wire.RESULT, frame.channel, wire.encode_fields(answer.items())))
                        )
                        if asked.text("verb") in ("keeper.quit", "shutdown"):
                            return
                    elif frame.type == wire.CLOSE:
                        holds.pop(frame.channel, None)
        self._connections.discard(connection)
        if "quit" in holds.values():
            self._end("host-signal")
        elif holds:
            self._resume()

    def _answer(self, asked: Fields) -> Answer:
        verb = asked.text("verb")
        if verb == "keeper.status":
            return {"state": self._state(), "version": 1}
        if verb == "keeper.wait":
            if asked.text("until") == "end":
                self._ended.wait(asked.number("wait_ms") / 1000)
                return {"reason": "guest-shutdown"}
            return {"version": 1, "hostname": "somebody", "features": "renew"}
        if verb in ("keeper.quit", "shutdown"):
            self._end("host-qmp-quit" if verb == "keeper.quit" else "guest-shutdown")
        return {"error": "ENOENT"} if verb == "stat" else {}
