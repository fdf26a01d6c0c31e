"""A real agent in a guest made of namespaces: its own users, processes, host name and network, and an /etc we can look into."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from insula.guest import wire
from insula.guest.link import Link
from insula.guest.wire import Fields, Frame, FrameReader, Hello, Value

_PASSWD = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"
_GROUP = "root:x:0:\nuser:x:1000:\naudio:x:29:user\n"


class Guest:
    """``port`` is the host's end of the agent's port; ``etc`` and ``tmp`` are the guest's folders of these names. ``without``:
    capabilities its root lacks."""

    def __init__(self, program: str, folder: Path, *, pid1: bool = False, without: Sequence[str] = ()) -> None:
        self.etc, self.tmp = folder / "etc", folder / "tmp"
        self.etc.mkdir()
        self.tmp.mkdir()
        (self.etc / "passwd").write_text(_PASSWD)
        (self.etc / "group").write_text(_GROUP)
        self.port, theirs = socket.socketpair()
        self.port.settimeout(20)
        with theirs:
            self.process = subprocess.Popen(
                [*_walls(self.etc, self.tmp, without, pid1=pid1), program, "--port", f"fd:{theirs.fileno()}"],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def begin_life(self, nonce: bytes | None = None) -> Hello:
        """Send SYNC and return the hello. Whatever else came before it is dropped, as the keeper does."""
        nonce = nonce or secrets.token_bytes(16)
        self.port.sendall(wire.encode_sync(nonce))
        heard = b""
        while (found := wire.find_hello(heard, nonce)) is None:
            came = self.port.recv(65536)
            assert came, "the agent hung up"
            heard += came
        hello, used = found
        assert used == len(heard), "an agent says nothing after its hello until it is asked"
        return hello

    def link(self) -> Link:
        """From now on the port belongs to the link."""
        self.begin_life()
        return Link(self.port)

    def raw(self) -> Raw:
        self.begin_life()
        return Raw(self.port)

    def close(self) -> None:
        self.port.close()
        self.process.kill()
        self.process.wait()


class Raw:
    """The port, frame by frame: for what a well-behaved host never says."""

    def __init__(self, port: socket.socket) -> None:
        self.port = port
        self._reader = FrameReader()
        self._held: list[Frame] = []

    def send(self, kind: int, channel: int, payload: bytes = b"", stream: int = 0) -> None:
        self.port.sendall(wire.encode_frame(Frame(kind, channel, payload, stream)))

    def open(self, channel: int, verb: str, **fields: Value | list[bytes]) -> None:
        self.send(wire.OPEN, channel, wire.encode_fields([("verb", verb), *fields.items()]))

    def read(self) -> Frame:
        while not self._held:
            came = self.port.recv(65536)
            assert came, "the agent hung up"
            self._held = self._reader.feed(came)
        return self._held.pop(0)

    def result(self, channel: int) -> Fields:
        """The RESULT of a channel; what comes before it is dropped."""
        while (frame := self.read()).type != wire.RESULT or frame.channel != channel:
            pass
        return wire.decode_fields(frame.payload)

    def ping(self, channel: int) -> None:
        """The agent is well: it answers this and everything before it."""
        self.open(channel, "ping", data=b"x")
        assert self.result(channel).raw("data") == b"x"


def run(link: Link, *argv: str, stdin: bytes = b"", **more: Value) -> tuple[Fields, bytes]:
    """Run a program to its end; its answer and what it wrote."""
    channel = link.open("exec", argv=list(argv), **more)
    if stdin:
        channel.write(stdin)
    channel.eof()
    out = b"".join(data for _, data in channel)
    return channel.finish(10), out


def _walls(etc: Path, tmp: Path, without: Sequence[str], *, pid1: bool) -> list[str]:
    namespaces = ["--unshare-user", "--unshare-pid", "--unshare-uts", "--unshare-net", "--unshare-ipc"]
    links = [f"--symlink usr/{name} /{name}" for name in ("bin", "sbin", "lib", "lib64")]
    return [
        "bwrap", *namespaces, "--uid", "0", "--gid", "0", "--cap-add", "ALL", "--die-with-parent",
        *(["--as-pid-1"] if pid1 else []),
        *(word for capability in without for word in ("--cap-drop", capability)),
        "--ro-bind", "/usr", "/usr", *" ".join(links).split(),
        "--ro-bind", os.environ["TMPDIR"], os.environ["TMPDIR"], "--ro-bind", str(Path.home()), str(Path.home()),
        "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/run", "--bind", str(tmp), "/tmp", "--bind", str(etc), "/etc",
        "--dir", "/root", "--chdir", "/", "--",
    ]  # fmt: skip
