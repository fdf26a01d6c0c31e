"""A network of its own for a room of package scripts: out to the package archive, but not to services of this host.

The room's network namespace is joined to the world by pasta, which moves connections, not packets, and is told to give no way
to this host's loopback. Where that cannot be (no pasta, no /dev/net/tun for us, a resolver or proxy that lives on the loopback)
the room uses the host's network, and the build says so.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from insula.host.namespaces import enter
from insula.host.process import Child, find_program, run, spawn

_PATIENCE: Final = 5.0  # seconds for pasta to configure the namespace
_RESOLVERS: Final = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
# Nothing is forwarded inwards, nothing between the loopbacks; IPv4 and IPv6 as the host has them. It may not watch the
# namespace's file, so it must not try.
_PASTA: Final = "pasta --foreground --quiet --config-net --no-map-gw --no-netns-quit -t none -u none -T none -U none"
# pasta must end when we do, however we end: a reader of our pipe sees it. And the shell ends when pasta does.
_GUARDED: Final = "exec 3<&0; $1 <&- 3<&- & (read -r _ <&3; kill $!) & wait %1"


class Uplink(msgspec.Struct, frozen=True):
    """``network``: a descriptor of the namespace, or None with the reason in ``why``. ``resolver``: its resolv.conf."""

    network: int | None = None
    resolver: Path = _RESOLVERS[0]
    why: str = ""


@contextlib.contextmanager
def uplink(namespace: int) -> Iterator[Uplink]:
    """A network namespace owned by the user namespace ``namespace``, connected outwards while the context lasts."""
    resolver = outside_resolver()
    if why := _obstacle(resolver):
        yield Uplink(why=why)
        return
    with _network_of(namespace) as (holder, network), _pasta(holder) as pasta:
        if _wait_until_connected(holder, pasta):
            yield Uplink(network, resolver or _RESOLVERS[0])
        else:
            yield Uplink(why="pasta could not connect a namespace")


def _obstacle(resolver: Path | None) -> str:
    if find_program("pasta") is None:
        return "pasta is not installed"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun is closed to this user"
    if resolver is None:
        return "this host's name server is on its loopback"
    if any(_on_loopback(os.environ.get(name, "")) for name in ("http_proxy", "https_proxy")) or _on_loopback(host_proxies()):
        return "this host's proxy is on its loopback"
    return ""


def host_proxies() -> str:
    """What apt on this host says of its proxies, in the form of apt.conf; empty without any."""
    if find_program("apt-config") is None:
        return ""
    asked = ("Acquire::http::Proxy", "Acquire::https::Proxy")
    return run(["apt-config", "dump", "--format", '%f "%v"; ', *asked], check=False).text.replace("\n", " ").strip()


def _on_loopback(address: str) -> bool:
    return any(word in address for word in ("//127.", "//localhost", "//[::1]"))


def outside_resolver(files: tuple[Path, ...] = _RESOLVERS) -> Path | None:
    """The first of ``files`` (format: resolv.conf(5)) that names a server which is not on the loopback."""
    for path in files:
        with contextlib.suppress(OSError):
            words = [line.split() for line in path.read_text(errors="replace").splitlines()]
            servers = [line[1].partition("%")[0] for line in words if len(line) > 1 and line[0] == "nameserver"]
            with contextlib.suppress(ValueError):
                if any(not ipaddress.ip_address(server).is_loopback for server in servers):
                    return path
    return None


@contextlib.contextmanager
def _network_of(namespace: int) -> Iterator[tuple[Child, int]]:
    """A process that lives in a new network namespace, and a descriptor of that."""
    ready_read, ready_write = os.pipe()
    hold_read, hold_write = os.pipe()
    words = [*enter(namespace), "unshare", "--net", "--", "sh", "-c", "echo; read -r _"]
    with spawn(words, stdin=hold_read, stdout=ready_write, pass_fds=[namespace], detached=True) as holder:
        os.close(hold_read)
        os.close(ready_write)
        descriptor = -1
        try:
            os.read(ready_read, 1)
            descriptor = os.open(f"/proc/{holder.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            yield holder, descriptor
        finally:
            if descriptor >= 0:
                os.close(descriptor)
            os.close(ready_read)
            os.close(hold_write)


@contextlib.contextmanager
def _pasta(holder: Child) -> Iterator[Child]:
    words = f"{_PASTA} --userns /proc/{holder.pid}/ns/user --netns /proc/{holder.pid}/ns/net"
    if os.geteuid() == 0:
        words += " --runas 0"  # another user could not enter the namespaces; pasta jails itself all the same
    hold_read, hold_write = os.pipe()
    with spawn(["sh", "-c", _GUARDED, "sh", words], stdin=hold_read, detached=True) as guard:
        os.close(hold_read)
        try:
            yield guard
        finally:
            os.close(hold_write)
            guard.wait()


def _wait_until_connected(holder: Child, pasta: Child) -> bool:
    """Whether the namespace got a route before pasta gave up. The kernel offers no event for another namespace's routes."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end and _lives(pasta):
        with contextlib.suppress(OSError):
            if len(Path(f"/proc/{holder.pid}/net/route").read_text().splitlines()) > 1:
                return True
        threading.Event().wait(0.02)
    return False


def _lives(child: Child) -> bool:
    return child.wait(0) is None
