from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
from collections.abc import Iterator

import pytest

from insula.guest.link import Link
from insula.guest.wire import encode_sync, find_hello
from insula.host.namespaces import package_namespace
from insula.host.native import native_path
from tests.framework.peer import Peer

# Where the agent runs in tests: all of this computer but its cgroups, which the agent would use as a guest's own, and other
# processes. Whoever it started ends with it.
_ROOM = ["bwrap", "--die-with-parent", "--unshare-pid", "--cap-add", "ALL", "--dev-bind", "/", "/"]
_ROOM += ["--proc", "/proc", "--tmpfs", "/sys/fs/cgroup"]


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture(scope="session")
def agent_program() -> str:
    return os.fspath(native_path("insula-agent"))


@contextlib.contextmanager
def _root_of() -> Iterator[tuple[list[str], list[int]]]:
    """An agent is root in its guest. For an ordinary user: root of a namespace with a full range of ids."""
    if os.geteuid() == 0:
        yield [], []
        return
    with package_namespace(with_self=True) as namespace:
        yield ["--userns", str(namespace)], [namespace]


@pytest.fixture
def agent(agent_program: str) -> Iterator[Link]:
    """A link to a real agent, which runs here as an ordinary process: what the keeper would do to begin a life is done here."""
    ours, theirs = socket.socketpair()
    with theirs, _root_of() as (namespace, passed):
        process = subprocess.Popen(
            [*_ROOM, *namespace, agent_program, "--port", f"fd:{theirs.fileno()}"],
            pass_fds=[theirs.fileno(), *passed],
            stdin=subprocess.DEVNULL,
        )
    try:
        _begin_life(ours)
        with Link(ours) as link:
            yield link
    finally:
        process.kill()
        process.wait()


def _begin_life(port: socket.socket) -> None:
    nonce = secrets.token_bytes(16)
    port.settimeout(10)
    port.sendall(encode_sync(nonce))
    heard = b""
    while (found := find_hello(heard, nonce)) is None:
        came = port.recv(65536)
        assert came, "the agent hung up"
        heard += came
    hello, used = found
    assert hello.version == 1
    assert used == len(heard)
