"""A computer beyond this host, for guests to talk to: a network namespace behind a pair of links, with addresses that are for
documentation (RFC 5737), so that nobody's network is meant."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

_CLONE_NEWNET = 0x40000000  # linux/sched.h


class Outside:
    """``address`` is what guests reach it by, ``near`` the host's own address on the way there."""

    address = "198.51.100.2"
    near = "198.51.100.1"

    def __init__(self, namespace: Path) -> None:
        self._namespace = namespace

    def listen(self, port: int = 0) -> socket.socket:
        """A listening TCP socket out there."""
        server = self._made(socket.SOCK_STREAM)
        server.bind((self.address, port))
        server.listen()
        server.settimeout(60)
        return server

    def datagrams(self, port: int = 0) -> socket.socket:
        """A UDP socket out there."""
        server = self._made(socket.SOCK_DGRAM)
        server.bind((self.address, port))
        server.settimeout(60)
        return server

    def _made(self, kind: int) -> socket.socket:
        """A socket belongs for life to the network in which it was made, and only threads can change theirs."""
        made: list[socket.socket] = []

        def make() -> None:
            with open(self._namespace, "rb") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            made.append(socket.socket(socket.AF_INET, kind))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return made[0]


@contextlib.contextmanager
def outside() -> Iterator[Outside]:
    """Needs root."""
    name = f"insout{os.getpid()}"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", f"inso{os.getpid()}", "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("address", "add", f"{Outside.near}/30", "dev", f"inso{os.getpid()}")
        _ip("link", "set", f"inso{os.getpid()}", "up")
        for words in (
            ("address", "add", f"{Outside.address}/30", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
            ("route", "add", "default", "via", Outside.near),
        ):
            _ip("-netns", name, *words)
        yield Outside(Path("/run/netns") / name)
    finally:
        _ip("netns", "delete", name)  # the pair goes with it


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)
