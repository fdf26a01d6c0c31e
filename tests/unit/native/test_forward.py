"""The process of a published port by itself: every byte arrives, ends are passed on, and refusals are."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

_PATIENCE = 20.0
_MUCH = os.urandom(1 << 16) * 64  # more than all buffers on the way hold


@contextlib.contextmanager
def _forward(program: str, listener: socket.socket, kind: str, port: int) -> Iterator[tuple[str, int]]:
    """``listener`` becomes descriptor 3 of the forwarder; yields where it is reached."""
    argv = ["sh", "-c", 'exec 3<&0; exec "$@"', "sh", program, "forward", kind, "127.0.0.1", str(port)]
    with subprocess.Popen(argv, stdin=listener.fileno()) as process:
        try:
            address: tuple[str, int] = listener.getsockname()
            listener.close()
            yield address
        finally:
            process.kill()


@pytest.fixture
def machine() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(_PATIENCE)
        yield server


@pytest.fixture
def reached(keeper_program: str, machine: socket.socket) -> Iterator[tuple[str, int]]:
    with _forward(keeper_program, socket.create_server(("127.0.0.1", 0)), "tcp", machine.getsockname()[1]) as address:
        yield address


def _send(connection: socket.socket) -> None:
    connection.sendall(_MUCH)
    connection.shutdown(socket.SHUT_WR)


def _all(connection: socket.socket) -> bytes:
    data = b""
    while came := connection.recv(1 << 20):
        data += came
    return data


@pytest.mark.limit(10)
def test_every_byte_arrives_each_way_and_ends_are_passed_on(reached: tuple[str, int], machine: socket.socket) -> None:
    with socket.create_connection(reached, _PATIENCE) as client, machine.accept()[0] as server:
        server.settimeout(_PATIENCE)
        sender = threading.Thread(target=_send, args=(client,))
        sender.start()
        assert _all(server) == _MUCH  # its end came, too, while the other way is still open
        sender.join()
        sender = threading.Thread(target=_send, args=(server,))
        sender.start()
        assert _all(client) == _MUCH
        sender.join()


def test_one_that_does_not_read_holds_nobody_else_up(reached: tuple[str, int], machine: socket.socket) -> None:
    with socket.create_connection(reached, _PATIENCE) as stuck, machine.accept()[0] as idle:
        idle.settimeout(_PATIENCE)
        stuck.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while stuck.send(_MUCH):
                pass
        with socket.create_connection(reached, _PATIENCE) as client, machine.accept()[0] as server:
            client.sendall(b"hello")
            assert server.recv(5) == b"hello"


def test_a_machine_that_refuses_ends_the_connection(reached: tuple[str, int], machine: socket.socket) -> None:
    machine.close()
    with socket.create_connection(reached, _PATIENCE) as client, contextlib.suppress(ConnectionResetError):
        assert client.recv(1) == b""


def test_datagrams_find_back_to_who_asked(keeper_program: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as machine:
        machine.bind(("127.0.0.1", 0))
        machine.settimeout(_PATIENCE)
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listener.bind(("127.0.0.1", 0))
        with _forward(keeper_program, listener, "udp", machine.getsockname()[1]) as address, contextlib.ExitStack() as stack:
            askers = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(300)]
            for number, asker in enumerate(askers):  # more than are remembered at a time
                asker.settimeout(_PATIENCE)
                asker.sendto(str(number).encode(), address)
                data, peer = machine.recvfrom(99)
                machine.sendto(b"answer to " + data, peer)
                assert asker.recv(99) == b"answer to %d" % number


def test_what_makes_no_sense_is_refused(keeper_program: str) -> None:
    for words in (["sctp", "127.0.0.1", "1"], ["tcp", "nowhere", "1"], ["tcp", "127.0.0.1", "0"], ["tcp"]):
        assert subprocess.run([keeper_program, "forward", *words], stderr=subprocess.DEVNULL, check=False).returncode == 2
