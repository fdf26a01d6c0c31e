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

    def __init__(self, namespace: Path, number: int) -> None:
        self._namespace = namespace
        self.near, self.address = (f"198.51.100.{4 * number + last}" for last in (1, 2))

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
    name, link = f"insout{os.getpid()}", f"inso{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as claim:
        number = _own_number(claim)
        _ip("netns", "add", name)
        try:
            made = Outside(Path("/run/netns") / name, number)
            _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("address", "add", f"{made.near}/30", "dev", link)
            _ip("link", "set", link, "up")
            for words in (
                ("address", "add", f"{made.address}/30", "dev", "eth0"),
                ("link", "set", "eth0", "up"),
                ("link", "set", "lo", "up"),
                ("route", "add", "default", "via", made.near),
            ):
                _ip("-netns", name, *words)
            yield made
        finally:
            # The pair would go with the namespace, but when the kernel gets to that; the next outside has links of the same name.
            with contextlib.suppress(subprocess.CalledProcessError):  # it was not made
                _ip("link", "delete", link)
            _ip("netns", "delete", name)


def _own_number(claim: socket.socket) -> int:
    """One of 64 that nobody else on this host has as long as ``claim`` is open: of two only one can bind a name (unix(7))."""
    for number in range(64):
        with contextlib.suppress(OSError):
            claim.bind(f"\0insula-tests-outside-{number}")
            return number
    raise AssertionError("64 outsides are in use")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)
