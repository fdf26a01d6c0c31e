"""What a QEMU does that a guest has taken over: `python -m tests.security.evil MANNER FILE -- QEMU ARGS...`, started so.

Its monitors greet and negotiate as they should, then by MANNER:

yes       every command succeeds with nothing in the answer
shapes    every command succeeds with values of every wrong type
mute      no command is ever answered
garbage   bytes that are no JSON
deep      JSON nested without end
long      a line without end
flood     events without end, and no answer
refuses   every command fails, in words meant for a terminal
claims    says what a good QEMU says, of things that never happened
dies      ends at the first command of a verb

``claims`` also spoils all that it was handed to be written to, as far as that can be done: its disk says that it rests on FILE.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

_GREETING = {"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": ["oob"]}}
_WORDS = "\x1b]0;evil\x07\x1b[2J no\n"
_SHAPES: list[Any] = [
    [], {}, None, 0, -1, 2**63, 1e308, "x", [[]], [{}], [None], ["x"], True, {"status": []}, {"status": "x" * 5000}, {"ram": 7},
    [{"device": 1, "node-name": [], "inserted": "x", "cpu-index": "no", "thread-id": -1, "label": {}, "frontend-open": "no"}],
    {"status": "completed", "total-time": "never", "ram": {"remaining": "x", "transferred": -1, "total": []}},
    {"running": "x", "status": "running", "actual": "all", "enabled": None, "fdset-id": "x", "fd": [], "capability": 0},
]  # fmt: skip
# The keeper's and these are told apart: without the keeper's there is no machine for a verb to be told lies about.
_KEEPERS = "mon-keeper"
_PLACE = 0x800  # in the first cluster, behind all that is there


class Evil:
    def __init__(self, manner: str, backing: str, words: list[str]) -> None:
        self.manner, self.backing = manner, backing.encode()
        self.channels = dict(_channels(words))
        self.files = [int(_pairs(value)["fd"]) for option, value in itertools.pairwise(words) if option == "-add-fd"]
        self.shapes = itertools.cycle(_SHAPES)

    def live(self) -> None:
        if self.manner == "claims":
            for descriptor in self.files:
                _spoil(descriptor, self.backing)
        for name, (descriptor, listening) in self.channels.items():
            if name.startswith("mon-"):
                work = self._accept if listening else self._serve
                threading.Thread(target=work, args=(name, socket.socket(fileno=descriptor)), daemon=True).start()
        self._babble()

    def _babble(self) -> None:
        """On the agent's port and the console; this thread is the process's life."""
        descriptors = [self.channels[name][0] for name in ("agent", "console")]
        noise = random.Random(7)
        for _ in range(64):
            for descriptor in descriptors:
                os.set_blocking(descriptor, False)
                with contextlib.suppress(OSError):
                    os.write(descriptor, noise.randbytes(4096))
        while True:
            time.sleep(3600)

    def _accept(self, name: str, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._serve, args=(name, connection), daemon=True).start()

    def _serve(self, name: str, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.setblocking(True)
            _say(connection, _GREETING)
            for line in connection.makefile("rb"):
                self._answer(name, connection, json.loads(line))

    def _answer(self, name: str, connection: socket.socket, command: dict[str, Any]) -> None:
        word, number = command["execute"], {"id": command["id"]} if "id" in command else {}
        if word == "qmp_capabilities":
            _say(connection, {"return": {}} | number)
        elif name == _KEEPERS:
            _say(connection, {"return": _truth(word)} | number)
        elif self.manner == "yes":
            _say(connection, {"return": {}} | number)
        elif self.manner == "shapes":
            _say(connection, {"event": next(self.shapes), "data": next(self.shapes), "timestamp": next(self.shapes)})
            _say(connection, {"return": next(self.shapes)} | number)
        elif self.manner == "garbage":
            connection.sendall(random.Random(3).randbytes(65536) + b"\n")
        elif self.manner == "deep":
            connection.sendall(b'{"return": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n")
        elif self.manner == "long":
            while True:
                connection.sendall(b"x" * 65536)
        elif self.manner == "flood":
            while True:
                _say(connection, {"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 1}})
        elif self.manner == "refuses":
            _say(connection, {"error": {"class": "GenericError", "desc": _WORDS}} | number)
        elif self.manner == "claims":
            _say(connection, {"return": _truth(word)} | number)
            for event in _EVENTS:
                _say(
                    connection, {"event": event, "data": {"status": "completed"}, "timestamp": {"seconds": 1, "microseconds": 1}}
                )
        elif self.manner == "dies":
            os._exit(1)


_EVENTS = ("STOP", "RESUME", "MIGRATION", "JOB_STATUS_CHANGE", "DEVICE_DELETED", "BLOCK_JOB_COMPLETED", "BALLOON_CHANGE")


def _truth(word: str) -> Any:
    """What a QEMU in good health says."""
    return {
        "query-status": {"status": "running", "running": True},
        "query-chardev": [],
        "query-fdsets": [],
        "query-named-block-nodes": [{"node-name": "disk0-1", "ro": False, "backing_file": "/etc/passwd"}],
        "query-rx-filter": [{"name": "nic0"}],
        "query-yank": [],
        "query-cpus-fast": [],
        "query-hotpluggable-cpus": [{"props": {"core-id": 0, "socket-id": 0}, "vcpus-count": 1, "qom-path": "/x"}],
        "query-memory-devices": [],
        "query-balloon": {"actual": 1},
        "add-fd": {"fdset-id": 1, "fd": 3},
        "human-monitor-command": "",
        "query-migrate": {"status": "completed", "ram": {"transferred": 1, "remaining": 0, "total": 1}},
    }.get(word, {})


def _spoil(descriptor: int, backing: bytes) -> None:
    """Write over a file, as far as it can be: a qcow2 head then says that it rests on a file of the host.

    Offsets of the header as in QEMU's ``docs/interop/qcow2.rst``.
    """
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        return
    with contextlib.suppress(OSError):
        if os.pread(descriptor, 4, 0) == b"QFI\xfb":
            os.pwrite(descriptor, _PLACE.to_bytes(8) + len(backing).to_bytes(4), 8)
            os.pwrite(descriptor, backing, _PLACE)
        else:
            os.pwrite(descriptor, os.urandom(4096), 0)


def _say(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\r\n")


def _channels(words: list[str]) -> Iterator[tuple[str, tuple[int, bool]]]:
    for option, value in itertools.pairwise(words):
        if option == "-chardev":
            pairs = _pairs(value)
            yield pairs["id"], (int(pairs["fd"]), "server" in pairs)


def _pairs(value: str) -> dict[str, str]:
    return {key: rest for key, _, rest in (word.partition("=") for word in value.split(","))}


def main() -> None:
    end = sys.argv.index("--")
    Evil(sys.argv[1], sys.argv[2], sys.argv[end + 1 :]).live()


if __name__ == "__main__":
    main()
