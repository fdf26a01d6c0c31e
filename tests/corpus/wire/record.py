"""Records what the agent and the keeper of this version say, as a new folder of the corpus. Run once per version of the protocol:

    python -m tests.corpus.wire.record vN

It refuses to touch a folder that exists: recordings are never changed, for they stand for agents and keepers that are out there.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from insula.guest import wire
from insula.guest.entries import EntryReader
from insula.guest.wire import Frame, FrameReader
from insula.host.native import native_path
from tests.unit.native.rig import Rig

HERE = Path(__file__).parent
NONCE = bytes(range(16))
_ROOM = ["bwrap", "--die-with-parent", "--unshare-pid", "--unshare-uts", "--hostname", "recorded", "--cap-add", "ALL"]
_ROOM += ["--dev-bind", "/", "/", "--proc", "/proc", "--tmpfs", "/sys/fs/cgroup"]


class Conversation:
    """One life of a real agent; what it says is kept as it came."""

    def __init__(self) -> None:
        self._port, theirs = socket.socketpair()
        argv = [*_ROOM, os.fspath(native_path("insula-agent")), "--port", f"fd:{theirs.fileno()}"]
        with theirs:
            self._process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._port.settimeout(10)
        self._port.sendall(wire.encode_sync(NONCE))
        self.hello = b""
        while wire.find_hello(self.hello, NONCE) is None:
            self.hello += self._port.recv(65536)
        self._channel = 0

    def ask(self, verb: str, given: bytes | None = None, **fields: wire.Value | list[wire.Value]) -> bytes:
        """All that the agent answers, to the RESULT."""
        self._channel += 1
        request = wire.encode_fields([("verb", verb), *fields.items()])
        self._port.sendall(wire.encode_frame(Frame(wire.OPEN, self._channel, request)))
        if given is not None:
            self._port.sendall(wire.encode_frame(Frame(wire.DATA, self._channel, given)))
            self._port.sendall(wire.encode_frame(Frame(wire.EOF, self._channel)))
        heard, reader = b"", FrameReader()
        while True:
            heard += (came := self._port.recv(65536))
            if any(frame.type == wire.RESULT for frame in reader.feed(came)):
                return heard

    def close(self) -> None:
        self._port.close()
        self._process.kill()
        self._process.wait()


def record() -> dict[str, bytes]:
    talk = Conversation()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        (tree / "folder").mkdir(parents=True)
        (tree / "file").write_bytes(b"content")
        (tree / "link").symlink_to("file")
        os.link(tree / "file", tree / "folder" / "hard")
        os.mkfifo(tree / "fifo")
        for path in [*tree.rglob("*"), tree]:
            os.utime(path, ns=(10**18, 10**18), follow_symlinks=False)
        got = talk.ask("get", path=os.fspath(tree))
        recordings = {
            "hello": _neutral(talk.hello),
            "frames-ping": talk.ask("ping", data=b"\0\xff"),
            "frames-exec": talk.ask("exec", b"in\n", argv=["sh", "-c", "cat; echo err >&2; exit 3"]),
            "frames-killed": talk.ask("exec", argv=["sh", "-c", "kill -TERM $$"]),
            "frames-not-found": talk.ask("exec", argv=["no-such-program"]),
            "frames-stat": talk.ask("stat", path=os.fspath(tree / "file")),
            "frames-unknown-verb": talk.ask("from-the-future"),
            "frames-get": got,
            "entries-get": b"".join(frame.payload for frame in FrameReader().feed(got) if frame.type == wire.DATA),
            "fields-every-tag": wire.encode_fields(_every_field()),
            "frames-every-type": b"".join(wire.encode_frame(frame) for frame in _every_frame()),
        }
    talk.close()
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="k") as folder:
        return recordings | record_keeper(Path(folder))


def record_keeper(folder: Path) -> dict[str, bytes]:
    """What a real keeper answers; QEMU, the agent and the serial console beside it are played."""
    rig = Rig(os.fspath(native_path("insula-keeper")), folder)
    rig.greet(agent_open=True)
    silent = {"frames-keeper-status-silent": _heard(rig, 1, "keeper.status")}
    silent["frames-keeper-wait-timeout"] = _heard(rig, 2, "keeper.wait", until="agent", wait_ms=1)
    rig.agent.live()
    rig.console.sendall(b"login: \xff")
    rig.event("STOP")
    rig.status()
    alive = {
        "frames-keeper-wait-agent": _heard(rig, 3, "keeper.wait", until="agent", wait_ms=5000),
        "frames-keeper-status": _heard(rig, 4, "keeper.status"),
        "frames-keeper-console": _console(rig, b"login: \xff"),
        "frames-keeper-events": _heard(rig, 6, "keeper.events", follow=0),
        "frames-keeper-unknown-verb": _heard(rig, 7, "keeper.from-the-future"),
        "frames-keeper-nonsense": _heard(rig, 8, "keeper.wait", until="doomsday"),
    }
    waiting = rig.connect()
    waiting.sendall(_opened(9, "keeper.wait", until="end"))
    rig.end("exit 0")
    ended = {"frames-keeper-wait-end": _to_result(waiting)}
    rig.close()
    return silent | alive | ended


def _console(rig: Rig, printed: bytes) -> bytes:
    """What the console printed comes from a socket of its own: ask until the keeper has read it."""
    deadline = time.monotonic() + 10
    while printed not in (heard := _heard(rig, 5, "keeper.console", follow=0, input=0)):
        assert time.monotonic() < deadline
    return heard


def _heard(rig: Rig, channel: int, verb: str, **fields: wire.Value) -> bytes:
    connection = rig.connect()
    connection.sendall(_opened(channel, verb, **fields))
    return _to_result(connection)


def _opened(channel: int, verb: str, **fields: wire.Value) -> bytes:
    return wire.encode_frame(Frame(wire.OPEN, channel, wire.encode_fields([("verb", verb), *fields.items()])))


def _to_result(connection: socket.socket) -> bytes:
    heard, reader = b"", FrameReader()
    while True:
        came = connection.recv(65536)
        assert came, "the keeper hung up"
        heard += came
        if any(frame.type == wire.RESULT for frame in reader.feed(came)):
            return heard


def _neutral(hello: bytes) -> bytes:
    """Without what names the computer it was recorded on; lengths stay."""
    kernel = os.uname().release.encode()
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    hello = hello.replace(kernel, b"6.1.0-recorded"[: len(kernel)].ljust(len(kernel), b"0"))
    return hello.replace(boot_id, b"00000000-0000-4000-8000-000000000000")


def _every_field() -> list[tuple[str, wire.Value]]:
    sample: dict[int, wire.Value] = {wire.TEXT: "täxt", wire.NUMBER: 2**63, wire.BYTES: b"/\xff", wire.RAW: b"a\0b"}
    return [(name, sample[kind]) for name, (_, kind) in wire._TAGS.items()]


def _every_frame() -> list[Frame]:
    payloads = {
        wire.OPEN: wire.encode_fields([("verb", "ping")]), wire.DATA: b"bytes", wire.CREDIT: wire.encode_credit(131072),
        wire.SIGNAL: b"INT", wire.RESIZE: wire.encode_size(24, 80),
    }  # fmt: skip
    return [Frame(kind, 0x01020304, payloads.get(kind, b""), kind % 3) for kind in range(1, 10)]


def decoded(name: str, recording: bytes) -> object:
    """What a recording means, as JSON. Its name's first word says what it is."""
    kind = name.partition("-")[0]
    if kind == "frames":
        return [_frame(frame) for frame in FrameReader().feed(recording)]
    if kind == "fields":
        return _fields(wire.decode_fields(recording))
    if kind == "hello":
        found = wire.find_hello(recording, NONCE)
        assert found is not None
        return {"version": found[0].version, "fields": _fields(found[0].fields), "rest": recording[found[1] :].hex()}
    reader, entries = EntryReader([recording]), []
    while (entry := reader.next()) is not None:
        content = b"".join(reader.data())
        entries.append({slot: _value(getattr(entry, slot)) for slot in entry.__slots__} | {"content": _value(content)})
    return entries


def _frame(frame: Frame) -> dict[str, object]:
    shown: dict[str, object] = {"type": frame.type, "channel": frame.channel, "stream": frame.stream}
    if frame.type in (wire.OPEN, wire.RESULT):
        return shown | {"fields": _fields(wire.decode_fields(frame.payload))}
    return shown | {"payload": frame.payload.hex()}


def _fields(fields: wire.Fields) -> list[list[object]]:
    return [[name, _value(value)] for name, value in fields]


def _value(value: wire.Value) -> object:
    return {"hex": value.hex()} if isinstance(value, bytes) else value


if __name__ == "__main__":
    target = HERE / sys.argv[1]
    target.mkdir()
    expected = {}
    for name, recording in record().items():
        (target / f"{name}.bin").write_bytes(recording)
        expected[name] = decoded(name, recording)
    (target / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")
