"""The built-in NAT: one passt process per machine, joined to its network card by a socket pair.

passt turns the guest's packets into ordinary sockets of an ordinary process, so no privilege, tap or rule is needed, and
QEMU's own network namespace stays empty. The guest sees a private network, gets its address by DHCP, and reaches what the host
reaches, except the host's loopback addresses. passt ends when QEMU closes its end.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Final

from insula.errors import ChildFailed, HostLacks
from insula.host.process import find_program, run, spawn
from insula.model.network import Nic
from insula.resources.groups import entering

ADDRESS: Final = "10.0.2.15"
PREFIX: Final = 24
GATEWAY: Final = "10.0.2.2"
RESOLVER: Final = "10.0.2.3"

_PATIENCE: Final = 3.0


def is_on_passt(nic: Nic) -> bool:
    """Whether the card's address is the one that all guests behind a passt have; on our networks it has an IPv6 one as well."""
    return nic.ipv4 == ADDRESS and nic.ipv6 is None


def passt_argv(descriptor: int, resolvers: Sequence[str], uid: int | None) -> list[str]:
    """Pure: the command for a guest whose card is at the other end of ``descriptor``. Understood by passt of 2023-03 and later.

    ``resolvers`` are name servers the guest may ask directly; with none, passt forwards what the guest asks at 10.0.2.3
    to the host's own (versions before 2024 cannot tell the guest so by DHCP, hence directly wherever possible).
    """
    words = ["setpriv", "--no-new-privs", "--inh-caps=-all"]
    if uid is not None:
        words += [f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--bounding-set=-all"]
    words += ["--", "passt", "--foreground", "--quiet", "--stderr", "--ipv4-only", "--fd", str(descriptor)]
    words += ["--address", ADDRESS, "--netmask", str(PREFIX), "--gateway", GATEWAY]
    # By default the guest's gateway address is the host's loopback: a guest must not reach what listens only there.
    words += ["--no-map-gw", "--tcp-ports", "none", "--udp-ports", "none"]
    for resolver in resolvers:
        words += ["--dns", resolver]
    if not resolvers:
        words += ["--dns-forward", RESOLVER]
    return words


def start_passt(uid: int | None, entrances: Sequence[int] = ()) -> socket.socket:
    """Start passt, in the control groups that have these entrances, and return the end of its socket that is for QEMU. Closing
    that end everywhere ends passt.

    Raises HostLacks (``program_missing``).
    """
    if find_program("passt") is None:
        raise HostLacks("the program 'passt' is not installed", code="program_missing", hint="run: insula doctor --fix")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Forked off, so that it is nobody's child whose end must be waited for. Its words go nowhere: without a system logger
        # old versions print one line for each line they could not log, for ever.
        argv = ["setsid", "--fork", *passt_argv(theirs.fileno(), host_resolvers(), uid)]
        with spawn(entering(entrances, argv), pass_fds=[theirs.fileno(), *entrances]) as starter:
            starter.wait(_PATIENCE)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return ours


def has_ended(end: socket.socket) -> bool:
    """Whether the passt at the other side of ``end`` is gone."""
    poller = select.poll()
    poller.register(end, 0)  # a hang-up is always reported
    return bool(poller.poll(0))


def explain_end(uid: int | None) -> HostLacks:
    """Why passt ended at once: start it again, for its words alone (with nobody at the other end it ends by itself)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.close()
    words = "it said nothing"
    try:
        run(passt_argv(theirs.fileno(), host_resolvers(), uid), pass_fds=[theirs.fileno()], timeout=_PATIENCE)
    except ChildFailed as failure:
        lines = [line for line in failure.output.splitlines() if line and "to syslog" not in line]
        words = lines[-1] if lines else failure.message
    finally:
        theirs.close()
    return HostLacks(
        f"passt ended at once, so the machine has no network: {words}",
        code="network_failed",
        hint="start the machine without a network: --network none",
    )


def host_resolvers() -> list[str]:
    """The host's name servers that a guest can ask directly; where a local stub stands in front, systemd-resolved's own list."""
    for path in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        try:
            text = Path(path).read_text(errors="replace")
        except OSError:
            continue
        if resolvers := parse_resolvers(text):
            return resolvers
    return []


def parse_resolvers(text: str) -> list[str]:
    """Pure: the IPv4 name servers of a resolv.conf(5) that are not loopback addresses, at most the three a guest would use."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = IPv4Address(words[1])
        except AddressValueError:
            continue
        if not address.is_loopback and not address.is_unspecified:
            found.append(str(address))
    return found[:3]
