"""Published ports: sockets of the host that lead to machines.

Each has a process (`insula-keeper forward`, native/keeper/forward.c) in the fabric, which is handed the host's socket and makes
the connections from inside, so nothing of the host's own packet filter is needed. ``ports/ADDRESS-PORT-PROTOCOL.json`` says what
is published; who listens is the holder's child of the same name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path
from typing import Final

import msgspec

from insula.errors import AlreadyExists, HostLacks, InsulaError, NotFound, UsageError
from insula.host.holder import Program
from insula.isolation.server import start_server
from insula.isolation.uids import service_id
from insula.model.network import Nic, Publish, clash, format_publish
from insula.networks.ground import Fabric, locked, opened
from insula.networks.plan import Attached
from insula.store import names
from insula.store.records import read_record, write_record

_BACKLOG: Final = 512
_TCP_TABLES: Final = ("tcp", "tcp6")
_UDP_TABLES: Final = ("udp", "udp6")
_LISTENING: Final = {"tcp": "0A", "udp": "07"}  # states as /proc/net shows them: TCP_LISTEN, and an unconnected udp socket


class Published(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A published port: of which card, of which machine."""

    publish: Publish
    nic: str
    machine: str
    machine_id: str


def child_name(publish: Publish) -> str:
    """What the holder knows its process as."""
    return f"{publish.address.replace(':', '.')}-{publish.host_port}-{publish.protocol}"


def publish(home: names.Home, attached: Attached, port: Publish) -> None:
    """Let ``port`` lead to the machine of a card that is attached; nothing happens when it does so already.

    Raises AlreadyExists (``port_taken``) saying who has it, HostLacks (``port_forbidden``), UsageError (``no_such_address``),
    NotFound (``not_attached``).
    """
    with locked(home), opened(home) as fabric:
        if fabric is None or attached.nic.key not in fabric.cards:
            raise NotFound(f"{attached.machine} is in no network now", code="not_attached", hint="start the machine first")
        path = _file(home, port)
        former = _read(path)
        wanted = Published(port, attached.nic.key, attached.machine, attached.machine_id)
        if former is not None and child_name(port) in fabric.running:
            if former == wanted:
                return
            if former.machine_id != attached.machine_id:
                raise _taken(port, f"the machine '{former.machine}'")
            fabric.holder.stop(child_name(port))  # the same machine, with another port or card
        _start(fabric, attached.nic, port)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_record(path, wanted)
        except BaseException:
            with contextlib.suppress(InsulaError):
                fabric.holder.stop(child_name(port))
            raise


def unpublish(home: names.Home, port: Publish) -> bool:
    """End a published port; whether there was one (found by address, port of the host and protocol)."""
    if not home.fabric.exists():
        return False
    with locked(home), opened(home) as fabric:
        path = _file(home, port)
        found = path.exists()
        if fabric is not None:
            fabric.holder.stop(child_name(port))
        path.unlink(missing_ok=True)
        return found


def published(home: names.Home) -> list[Published]:
    """All published ports."""
    with contextlib.suppress(FileNotFoundError):
        paths = sorted((home.fabric / names.FABRIC_PORTS).glob("[!.]*.json"))
        return [found for found in map(_read, paths) if found is not None]
    return []


def end_of_card(fabric: Fabric, key: str) -> None:
    """Hold the lock. End all ports of a card that is being detached."""
    for each in published(fabric.home):
        if each.nic == key:
            fabric.holder.stop(child_name(each.publish))
            _file(fabric.home, each.publish).unlink(missing_ok=True)


def rename_of_card(fabric: Fabric, attached: Attached) -> None:
    """Hold the lock. A card's machine has another name: who holds its ports is to be told by that."""
    for each in published(fabric.home):
        if each.nic == attached.nic.key and each.machine != attached.machine:
            write_record(_file(fabric.home, each.publish), msgspec.structs.replace(each, machine=attached.machine))


def mend(fabric: Fabric) -> None:
    """Hold the lock. Start again what should be there and is not; what cannot be is published no more."""
    for each in published(fabric.home):
        attached = fabric.cards.get(each.nic)
        if attached is not None and child_name(each.publish) in fabric.running:
            continue
        try:
            if attached is None:
                raise NotFound("its card is gone", code="not_attached")
            _start(fabric, attached.nic, each.publish)
        except InsulaError:
            _file(fabric.home, each.publish).unlink(missing_ok=True)


def _file(home: names.Home, port: Publish) -> Path:
    return home.fabric / names.FABRIC_PORTS / f"{child_name(port)}.json"


def _read(path: Path) -> Published | None:
    with contextlib.suppress(FileNotFoundError):
        return read_record(path, Published)
    return None


def _start(fabric: Fabric, nic: Nic, port: Publish) -> None:
    target = nic.ipv4 if ":" not in port.address or nic.ipv6 is None else nic.ipv6
    if target is None:
        raise UsageError(
            "a machine on the host's LAN has no ports to publish",
            code="no_publish",
            hint="reach it by its own address on the LAN",
        )
    name = child_name(port)
    program = Program(
        ("insula-keeper", "forward", port.protocol, target, str(port.guest_port)), uid=service_id(f"port-{name}"), rights=0
    )
    with contextlib.closing(_listen(fabric.home, port)) as listener, open(os.devnull, "wb") as nowhere:
        start_server(fabric.holder, name, program, nowhere.fileno(), listener.fileno())


def _listen(home: names.Home, port: Publish) -> socket.socket:
    """The host's socket for a published port."""
    family = socket.AF_INET6 if ":" in port.address else socket.AF_INET
    kind = socket.SOCK_STREAM if port.protocol == "tcp" else socket.SOCK_DGRAM
    listener = socket.socket(family, kind | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((port.address, port.host_port))
        if kind == socket.SOCK_STREAM:
            listener.listen(_BACKLOG)
    except OSError as cause:
        listener.close()
        raise _explain(home, port, cause) from None
    return listener


def _explain(home: names.Home, port: Publish, cause: OSError) -> Exception:
    if cause.errno == errno.EADDRINUSE:
        return _taken(port, holder_of(home, port))
    if cause.errno in (errno.EACCES, errno.EPERM):
        return HostLacks(
            f"this user may not listen on port {port.host_port}",
            code="port_forbidden",
            hint="use a port from 1024 on, or, as root: sysctl -w net.ipv4.ip_unprivileged_port_start=0",
        )
    if cause.errno == errno.EADDRNOTAVAIL:
        return UsageError(f"this host has no address {port.address}", code="no_such_address", hint="to see its own: ip address")
    return cause


def _taken(port: Publish, who: str) -> AlreadyExists:
    return AlreadyExists(
        f"port {port.host_port}/{port.protocol} of {port.address} is taken by {who}",
        code="port_taken",
        hint=f"publish another one, or free it; for one of a machine: insula unpublish NAME {format_publish(port)}",
    )


def holder_of(home: names.Home, port: Publish) -> str:
    """Who has a port of the host, as far as this user may see."""
    for each in published(home):
        if clash(each.publish, port):
            return f"the machine '{each.machine}'"
    inodes = _inodes(port)
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if any(link in inodes for link in _links(pid)):
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                return f"process {pid} ({name})"
    return "another program"


def _links(pid: str) -> list[str]:
    folder = f"/proc/{pid}/fd"
    found = []
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"{folder}/{name}"))
    return found


def _inodes(port: Publish) -> set[str]:
    """What descriptors of the sockets on that port are links to. Format: proc(5), /proc/net/tcp."""
    found = set()
    for table in _TCP_TABLES if port.protocol == "tcp" else _UDP_TABLES:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                words = line.split()
                if int(words[1].rpartition(":")[2], 16) == port.host_port and words[3] == _LISTENING[port.protocol]:
                    found.add(f"socket:[{words[9]}]")
    return found
