"""A real keeper with everything around it played by the test: QMP, the agent's port, the serial console. Its child is a shell
that does what it is told, so that every way in which QEMU may end can be had."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from insula.guest import wire
from insula.guest.link import Link
from insula.guest.wire import Fields, Frame, FrameReader, Value

_CHILD = 'while read -r line; do eval "$line"; done'
_FILES = ("status", "exit", "events", "events-old", "console-log", "console-log-old", "qemu-log")
_SYNC_SIZE = wire.SYNC_ZEROS + 40
HELLO = wire.encode_fields([("version", 1), ("arch", "amd64"), ("hostname", "web"), ("boot_id", "b1"), ("argv", b"not for you")])


def read_exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        came = connection.recv(size - len(data))
        assert came, "the keeper hung up"
        data += came
    return data


class AgentSide:
    """The guest's end of the agent port."""

    def __init__(self, port: socket.socket) -> None:
        self.port = port
        self._reader = FrameReader()
        self._frames: deque[Frame] = deque()

    def nonce(self) -> bytes:
        """Read one whole SYNC; its nonce."""
        heard = read_exactly(self.port, _SYNC_SIZE)
        assert heard[: wire.SYNC_ZEROS] == bytes(wire.SYNC_ZEROS)
        mark, nonce, rest = heard[wire.SYNC_ZEROS :][:16], heard[wire.SYNC_ZEROS + 16 :][:16], heard[-8:]
        assert (mark, rest) == (wire.SYNC_MARK, b"\1\0\1\0\0\0\0\0")
        return nonce

    def answer(self, nonce: bytes, version: int = 1, fields: bytes = HELLO) -> None:
        counts = version.to_bytes(2, "little") + bytes(2) + len(fields).to_bytes(4, "little")
        self.port.sendall(wire.SYNC_MARK + nonce + counts + fields)

    def live(self) -> None:
        self.answer(self.nonce())

    def read(self) -> Frame:
        while not self._frames:
            data = self.port.recv(1 << 20)
            assert data, "the keeper hung up"
            self._frames.extend(self._reader.feed(data))
        return self._frames.popleft()

    def send(self, kind: int, channel: int, payload: bytes = b"", stream: int = 0) -> None:
        self.port.sendall(wire.encode_frame(Frame(kind, channel, payload, stream)))

    def result(self, channel: int, **fields: Value | Sequence[Value]) -> None:
        self.send(wire.RESULT, channel, wire.encode_fields(fields.items()))


class RawClient:
    """A connection to the keeper that may say anything."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._reader = FrameReader()
        self._frames: deque[Frame] = deque()

    def send(self, kind: int, channel: int, payload: bytes = b"", stream: int = 0) -> None:
        self.socket.sendall(wire.encode_frame(Frame(kind, channel, payload, stream)))

    def open(self, channel: int, verb: str, **fields: Value) -> None:
        self.send(wire.OPEN, channel, wire.encode_fields([("verb", verb), *fields.items()]))

    def read(self) -> Frame | None:
        """The next frame, or None when the keeper hung up."""
        while not self._frames:
            try:
                data = self.socket.recv(1 << 20)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self._frames.extend(self._reader.feed(data))
        return self._frames.popleft()

    def result(self, channel: int) -> Fields:
        """The answer of a channel; frames that come before it are dropped."""
        while frame := self.read():
            if frame.type == wire.RESULT and frame.channel == channel:
                return wire.decode_fields(frame.payload)
        raise AssertionError("the keeper hung up")


class Rig:
    def __init__(self, program: str, folder: Path, child: Sequence[str] = ("/bin/sh", "-c", _CHILD)) -> None:
        self.folder = folder
        self._sockets: list[socket.socket] = []
        self._links: list[Link] = []
        theirs: dict[str, int] = {}
        self.agent = AgentSide(self._pair("agent", theirs))
        self.console = self._pair("console", theirs)
        self.qmp = self._pair("qmp", theirs)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(os.fspath(folder / "keeper.sock"))
        listener.listen(128)
        theirs["listen"] = listener.detach()
        for name in _FILES:
            theirs[name] = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600)
        self.ready, theirs["ready"] = os.pipe()
        self._keep_read, self._keep_write = os.pipe()
        options = [word for name, fd in theirs.items() for word in (f"--{name}", str(fd))]
        self.process = subprocess.Popen(
            [program, "inner", *options, "--keep", str(self._keep_write), "--", *child],
            stdin=subprocess.PIPE,
            pass_fds=[*theirs.values(), self._keep_write],
        )
        for fd in (*theirs.values(), self._keep_write):
            os.close(fd)
        self.kept_fd = self._keep_write
        self._qmp_lines = self.qmp.makefile("rb")

    def _pair(self, name: str, theirs: dict[str, int]) -> socket.socket:
        ours, other = socket.socketpair()
        ours.settimeout(10)
        self._sockets.append(ours)
        theirs[name] = other.detach()
        return ours

    # -- the monitor -----------------------------------------------------------------------------------------------------------
    def say(self, message: dict[str, Any] | bytes) -> None:
        self.qmp.sendall(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\r\n")

    def event(self, name: str, **data: Any) -> None:
        self.say({"timestamp": {"seconds": 1, "microseconds": 2}, "event": name, "data": data})

    def command(self) -> str:
        """The next command the keeper gives QEMU."""
        return str(json.loads(self._qmp_lines.readline())["execute"])

    def answer(self, name: str, value: Any) -> None:
        self.say({"return": value, "id": name})

    def greet(self, status: str = "running", agent_open: bool = False) -> Rig:
        """What QEMU says when it starts, until the keeper knows all it asks for."""
        self.say({"QMP": {"version": {}, "capabilities": ["oob"]}})
        assert self.command() == "qmp_capabilities"
        self.answer("qmp_capabilities", {})
        assert [self.command(), self.command()] == ["query-status", "query-chardev"]
        self.answer("query-status", {"status": status, "running": status == "running"})
        self.answer("query-chardev", [{"label": "qmp"}, {"label": "agent", "frontend-open": agent_open}])
        assert os.read(self.ready, 100) == b"ready\n"
        return self

    def live(self) -> Rig:
        """A running machine whose agent answers."""
        self.greet(agent_open=True)
        self.agent.live()
        return self

    # -- clients -----------------------------------------------------------------------------------------------------------
    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(10)
        connection.connect(os.fspath(self.folder / "keeper.sock"))
        self._sockets.append(connection)
        return connection

    def link(self) -> Link:
        link = Link(self.connect())
        self._links.append(link)
        return link

    def raw(self) -> RawClient:
        return RawClient(self.connect())

    def status(self) -> Fields:
        """What keeper.status says. All that was said by QMP before is known to the keeper by then."""
        with self.link() as link:
            return link.call("keeper.status", timeout=60)

    # -- the child and the end -------------------------------------------------------------------------------------------------
    def child(self, line: str) -> None:
        """Let the child do this."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def end(self, line: str = "exit 0") -> dict[str, Any]:
        """Let the child end and wait for the keeper; its exit record."""
        self.child(line)
        for connection in (self.qmp, self.agent.port, self.console):  # as QEMU's sockets go with it
            connection.shutdown(socket.SHUT_RDWR)
        return self.ended()

    def ended(self) -> dict[str, Any]:
        assert self.process.wait(10) == 0
        return self.record("exit")

    def record(self, name: str) -> dict[str, Any]:
        value = json.loads((self.folder / name).read_bytes())
        assert isinstance(value, dict)
        return value

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in (self.folder / "events").read_bytes().splitlines()]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self._qmp_lines.close()
        for link in self._links:
            link.close()
        for connection in self._sockets:
            connection.close()
        for fd in (self.ready, self._keep_read):
            os.close(fd)
