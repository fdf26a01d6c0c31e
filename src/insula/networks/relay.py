"""The host's name server, where that is at an address of the host itself: machines and fabric do not reach those.

The networks' name servers ask it through a relay: a process in the host's network (`insula-keeper forward`, as for published
ports) with a socket on the fabric's loopback, which nobody else in the fabric can speak to.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Collection
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from insula.host.holder import Holder, Program
from insula.isolation.server import start_server
from insula.isolation.uids import service_id
from insula.networks.passt import host_resolvers

if TYPE_CHECKING:
    from insula.networks.ground import Fabric

_PREFIX: Final = "resolver-"
_LOOPBACK: Final = "127.0.0.1"
_FIRST: Final = 5301  # ports on the fabric's loopback
_NAMES: Final = "53"
_MOST: Final = 3  # as resolver(3) asks
_BACKLOG: Final = 64


def resolvers(own: Collection[str]) -> list[str]:
    """Whom networks' name servers ask, in dnsmasq's words. ``own``: the host's addresses."""
    relayed = _relayed(own)
    return [f"{_LOOPBACK}#{_FIRST + relayed.index(each)}" if each in relayed else each for each in _servers()]


def children(own: Collection[str]) -> set[str]:
    """What the holder knows the relays as that should run."""
    return {_name(target, protocol) for target in _relayed(own) for protocol in ("udp", "tcp")}


def ensure(fabric: Fabric) -> None:
    """Have those run that should, and no others. The fabric's loopback must be up. Raises HostLacks."""
    wanted = children(fabric.state.addresses)
    for name in sorted(fabric.running):
        if name.startswith(_PREFIX) and name not in wanted:
            fabric.holder.stop(name)
    for index, target in enumerate(_relayed(fabric.state.addresses)):
        for protocol, kind in (("udp", socket.SOCK_DGRAM), ("tcp", socket.SOCK_STREAM)):
            if _name(target, protocol) not in fabric.running:
                _start(fabric.holder, target, protocol, kind, _FIRST + index)
                fabric.running.add(_name(target, protocol))


def _start(holder: Holder, target: str, protocol: str, kind: int, port: int) -> None:
    name = _name(target, protocol)
    program = Program(("insula-keeper", "forward", protocol, target, _NAMES), outside=True, uid=service_id(name), rights=0)
    with contextlib.closing(holder.socket(socket.AF_INET, kind, 0)) as listener, open(os.devnull, "wb") as nowhere:
        listener.bind((_LOOPBACK, port))
        if kind == socket.SOCK_STREAM:
            listener.listen(_BACKLOG)
        start_server(holder, name, program, nowhere.fileno(), listener.fileno())


def _name(target: str, protocol: str) -> str:
    return f"{_PREFIX}{target.replace(':', '.')}-{protocol}"


def _servers() -> list[str]:
    """The host's name servers: those that others could ask as well, if there are any."""
    with contextlib.suppress(OSError):
        return host_resolvers() or parse_local(Path("/etc/resolv.conf").read_text(errors="replace"))
    return []


def _relayed(own: Collection[str]) -> list[str]:
    return [each for each in _servers() if each in own or ip_address(each).is_loopback]


def parse_local(text: str) -> list[str]:
    """Pure: the name servers of a resolv.conf(5) that are on the host's loopback."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            with contextlib.suppress(ValueError):
                address = ip_address(words[1])
                if address.is_loopback or address.is_unspecified:
                    found.append(str(address) if address.is_loopback else _LOOPBACK)
    return list(dict.fromkeys(found))[:_MOST]
