"""A keeper that cannot be trusted, serving RUN/keeper.sock and RUN/qmp.sock: `python -m tests.faults.liar RUN MANNER`.

deaf      listens and accepts nobody
silent    accepts and never says anything
garbage   sends bytes that are no frames
flood     sends good frames that nobody asked for, without end
greets    answers the first request as a keeper would, then floods
hangup    accepts and hangs up
yes       answers every request by success with senseless fields
claims    sends answers about things that cannot be (a huge window of data)
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import socket
import sys
import threading
from pathlib import Path

from insula.guest import wire
from insula.guest.wire import Frame, FrameReader
from insula.host.sockets import listen_unix
from insula.store import names

_LIES: list[tuple[str, wire.Value]] = [
    ("state", "running"),
    ("version", 2**64 - 1),
    ("code", 2**63),
    ("os", "\x1b]0;evil\x07"),
    ("reason", "x" * 4000),
]


def serve(connection: socket.socket, manner: str) -> None:
    """One client, until it leaves."""
    with connection, contextlib.suppress(OSError):
        if manner == "silent":
            while connection.recv(65536):
                pass
        elif manner == "garbage":
            noise = random.Random(1)
            while True:
                connection.sendall(noise.randbytes(4096))
        elif manner == "flood":
            _flood(connection)
        elif manner == "greets":
            for greeting in FrameReader().feed(connection.recv(65536))[:1]:  # none: somebody only looked whether we listen
                welcome = Frame(wire.RESULT, greeting.channel, wire.encode_fields([("state", "running")]))
                connection.sendall(wire.encode_frame(welcome))
                _flood(connection)
        elif manner in ("yes", "claims"):
            _answer(connection, manner)


def _flood(connection: socket.socket) -> None:
    for channel in itertools.cycle(range(1 << 16)):
        connection.sendall(wire.encode_frame(Frame(wire.DATA, channel + (1 << 20), bytes(65536), 1)))


def _answer(connection: socket.socket, manner: str) -> None:
    reader = FrameReader()
    while data := connection.recv(65536):
        for frame in reader.feed(data):
            if frame.type != wire.OPEN:
                continue
            if manner == "claims":
                for _ in range(64):
                    connection.sendall(wire.encode_frame(Frame(wire.DATA, frame.channel, bytes(65536), 1)))
            connection.sendall(wire.encode_frame(Frame(wire.RESULT, frame.channel, wire.encode_fields(_LIES))))


def accept(listener: socket.socket, manner: str) -> None:
    while True:
        connection, _ = listener.accept()
        if manner == "hangup":
            connection.close()
        else:
            threading.Thread(target=serve, args=(connection, manner), daemon=True).start()


def main() -> None:
    run, manner = Path(sys.argv[1]), sys.argv[2]
    run.mkdir()
    listeners = [listen_unix(run / names.KEEPER_SOCKET, backlog=2), listen_unix(run / names.QMP_SOCKET)]
    (run / names.STATUS).write_text(json.dumps({"state": "running", "agent": True, "qemu_pid": 2**70}))
    print("ready", flush=True)
    for listener in listeners:
        if manner != "deaf":
            threading.Thread(target=accept, args=(listener, manner), daemon=True).start()
    os.read(0, 1)


if __name__ == "__main__":
    main()
