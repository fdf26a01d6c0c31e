"""A LAN of its own beside this host: a switch somebody else is on, who gives addresses away. Its addresses are for documentation
(RFC 5737). The host's place on it is a network card, or a bridge with one in it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "192.0.2."
_FETCH = """
import sys, urllib.request
try:
    print(urllib.request.urlopen(f"http://{sys.argv[1]}/", timeout=20).read().decode(), end="")
except OSError:
    pass
"""
SERVER = f"{_PREFIX}1"


class Lan:
    """``card`` is a network card of the host's that is on the LAN, ``bridge`` one in which another such card is."""

    def __init__(self, name: str, leases: Path) -> None:
        self._name, self._leases = name, leases
        self.card, self.bridge = f"insc{os.getpid()}", f"insb{os.getpid()}"

    def leases(self) -> dict[str, str]:
        """The addresses given away, by the hardware address of who has them. Format: dnsmasq(8), --dhcp-leasefile."""
        lines = self._leases.read_text().splitlines() if self._leases.exists() else []
        return {line.split()[1]: line.split()[2] for line in lines}

    def lease(self, mac: str) -> str:
        """The address given to that card, as soon as it is."""
        end = time.monotonic() + 60
        while mac not in self.leases():
            assert time.monotonic() < end, f"nobody with the address {mac} has asked"
            time.sleep(0.1)
        return self.leases()[mac]

    def fetched(self, address: str) -> str:
        """What a web server at ``address`` says to somebody on the LAN; nothing when nobody answers."""
        words = ["ip", "netns", "exec", self._name, sys.executable, "-I", "-c", _FETCH, address]
        return subprocess.run(words, capture_output=True, check=True, text=True, timeout=60).stdout


@contextlib.contextmanager
def lan(folder: Path) -> Iterator[Lan]:
    """Needs root. ``folder`` is the server's."""
    name = f"inslan{os.getpid()}"
    made = Lan(name, folder / "leases")
    _ip("netns", "add", name)
    try:
        for words in (
            ("-netns", name, "link", "add", "switch", "type", "bridge", "stp_state", "0", "forward_delay", "0"),
            ("-netns", name, "address", "add", f"{SERVER}/24", "dev", "switch"),
            ("-netns", name, "link", "set", "switch", "up"),
            ("link", "add", made.bridge, "type", "bridge", "stp_state", "0", "forward_delay", "0"),
            ("link", "set", made.bridge, "up"),
        ):
            _ip(*words)
        for number, link in enumerate((made.card, f"{made.bridge}c")):
            _ip("link", "add", link, "type", "veth", "peer", "name", f"port{number}", "netns", name)
            _ip("-netns", name, "link", "set", f"port{number}", "master", "switch", "up")
            _ip("link", "set", link, "up")
        _ip("link", "set", f"{made.bridge}c", "master", made.bridge)
        serve = [
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--port=0",
            "--interface=switch",
            "--bind-interfaces",
        ]
        serve += ["--user=root", "--group=", "--pid-file=", f"--dhcp-leasefile={folder}/leases", "--no-ping", "--log-facility=-"]
        serve += [f"--dhcp-range={_PREFIX}50,{_PREFIX}99,1h"]
        server = subprocess.Popen(["ip", "netns", "exec", name, *serve], stderr=subprocess.DEVNULL)
        try:
            yield made
        finally:
            server.terminate()
            server.wait()
    finally:
        _ip("netns", "delete", name)  # the pairs go with it
        _ip("link", "delete", made.bridge)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)
