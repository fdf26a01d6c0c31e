"""The kernel's links, addresses and routes: changed by batches of ip(8) and tc(8), read through rtnetlink(7)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import struct
from collections.abc import Collection, Iterator, Sequence
from typing import Final

import msgspec

from insula.errors import HostLacks
from insula.host.holder import Spaces
from insula.host.process import run

_PATIENCE: Final = 30.0  # seconds
_FAILED: Final = re.compile(r"^Command failed .*:(\d+)$")
# What ip(8) and tc(8) say when there is already, or no more, what is to be made or removed.
THERE: Final = ("File exists",)
GONE: Final = ("Cannot find device", "No such file or directory", "No such process", "No such device")


def apply(
    program: str,
    lines: Sequence[str],
    spaces: Spaces | None = None,
    *,
    tolerated: Collection[str] = (),
    pass_fds: Sequence[int] = (),
) -> None:
    """Run ``lines`` as a batch of ``ip`` or ``tc``, in ``spaces`` or here. All are tried, whatever becomes of one.

    A refusal that contains one of ``tolerated`` is none. Raises HostLacks (``links_refused``) naming the first other one.
    """
    if not lines:
        return
    inside = spaces.enter() if spaces is not None else []
    descriptors = [*(spaces.descriptors() if spaces is not None else ()), *pass_fds]
    data = "".join(f"{line}\n" for line in lines).encode()
    done = run([*inside, program, "-force", "-batch", "-"], data=data, check=False, pass_fds=descriptors, timeout=_PATIENCE)
    for number, why in refusals(done.stderr.decode(errors="replace")):
        if not any(each in why for each in tolerated):
            line = lines[number - 1] if 0 < number <= len(lines) else "?"
            raise HostLacks(
                f"this host's kernel refused '{program} {line}': {why}", code="links_refused", hint="to see why: insula doctor"
            )


def refusals(stderr: str) -> Iterator[tuple[int, str]]:
    """Pure: the lines that ip or tc -force -batch could not do, with the reason (the last thing said before)."""
    said = ""
    for line in stderr.splitlines():
        if match := _FAILED.match(line):
            yield int(match[1]), said or "no reason was given"
            said = ""
        elif line.strip():
            said = f"{said}; {line.strip()}" if said else line.strip()
    if said and "Command failed" not in stderr:
        yield 0, said


class Counted(msgspec.Struct, frozen=True):
    """What a link has carried, as its own side sees it: bytes, packets, and packets dropped."""

    up: bool
    received: tuple[int, int, int]
    sent: tuple[int, int, int]


def counters(spaces: Spaces | None = None) -> dict[str, Counted]:
    """All links in ``spaces`` (or here), by name. Raises ChildFailed."""
    inside, descriptors = (spaces.enter(), spaces.descriptors()) if spaces is not None else ([], ())
    listing = run([*inside, "ip", "-json", "-statistics", "link", "show"], pass_fds=descriptors, timeout=_PATIENCE).stdout
    found = {}
    for each in json.loads(listing or b"[]"):
        got, sent = each["stats64"]["rx"], each["stats64"]["tx"]
        sides = [(side["bytes"], side["packets"], side["dropped"]) for side in (got, sent)]
        found[each["ifname"]] = Counted("UP" in each["flags"], *sides)
    return found


# -- reading: format rtnetlink(7), netlink(7) ------------------------------------------------------------------------------------
_GETLINK, _GETADDR, _GETROUTE = 18, 22, 26
_REQUEST_DUMP: Final = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_ERROR, _DONE = 2, 3
_UP: Final = 1  # IFF_UP of linux/if.h
_NAME, _STATS, _MASK = 3, 23, 29  # IFLA_IFNAME, IFLA_STATS64, IFLA_EXT_MASK
_WITHOUT_COUNTERS: Final = 1 << 3  # RTEXT_FILTER_SKIP_STATS
_ADDRESS, _LOCAL = 1, 2  # IFA_ADDRESS, IFA_LOCAL
_DESTINATION, _OUT = 1, 4  # RTA_DST, RTA_OIF
_MAIN, _UNICAST, _BY_ROUTERS = 254, 1, 9  # RT_TABLE_MAIN, RTN_UNICAST, RTPROT_RA
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


def _dump(kind: int) -> Iterator[bytes]:
    """The messages of a dump, for IPv4 and IPv6."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        for family in _FAMILIES:
            # nlmsghdr: length, type, flags, sequence, port; then a body as long as rtmsg, whose first byte is the family
            netlink.send(struct.pack("=IHHIIB11x", 28, kind, _REQUEST_DUMP, 1, 0, family))
            yield from _messages(netlink)


def _messages(netlink: socket.socket) -> Iterator[bytes]:
    while True:
        data = netlink.recv(1 << 17)
        while data:
            length, kind = struct.unpack_from("=IH", data)
            if kind in (_ERROR, _DONE):
                return
            yield data[16:length]
            data = data[(length + 3) & ~3 :]


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        found[kind] = data[4:length]
        data = data[max(4, (length + 3) & ~3) :]
    return found


def names(netlink: socket.socket) -> set[str]:
    """The links of the network that a rtnetlink socket is of."""
    # nlmsghdr; struct ifinfomsg, all zero; struct rtattr: length, type; a mask of what else is to be told
    netlink.send(struct.pack("=IHHII16xHHI", 40, _GETLINK, _REQUEST_DUMP, 1, 0, 8, _MASK, _WITHOUT_COUNTERS))
    told = (_attributes(message[16:]) for message in _messages(netlink))
    return {os.fsdecode(each[_NAME].rstrip(b"\0")) for each in told if _NAME in each}


def counts(netlink: socket.socket) -> dict[str, Counted]:
    """What `counters` tells of the network that a rtnetlink socket is of, within a thousandth of a second: no program is run."""
    netlink.send(struct.pack("=IHHII16x", 32, _GETLINK, _REQUEST_DUMP, 1, 0))  # nlmsghdr; struct ifinfomsg, all zero
    found = {}
    for message in _messages(netlink):
        (flags,) = struct.unpack_from("=8xI", message)
        told = _attributes(message[16:])
        if _NAME in told and _STATS in told:
            # linux/if_link.h, struct rtnl_link_stats64: packets, bytes, errors, dropped, of each first the received
            packets = struct.unpack_from("=8Q", told[_STATS])
            got, sent = ((packets[2 + side], packets[side], packets[6 + side]) for side in (0, 1))
            found[os.fsdecode(told[_NAME].rstrip(b"\0"))] = Counted(bool(flags & _UP), got, sent)
    return found


def addresses(*, except_link: str = "") -> list[str]:
    """All addresses of this host, those of its loopback among them, but not those of one link."""
    skipped = socket.if_nametoindex(except_link) if except_link and exists(except_link) else 0
    found = []
    for message in _dump(_GETADDR):
        family, index = struct.unpack_from("=B3xI", message)
        told = _attributes(message[8:])
        raw = told.get(_LOCAL, told.get(_ADDRESS))
        if raw is not None and index != skipped:
            found.append(socket.inet_ntop(family, raw))
    return sorted(set(found))


def routes(*, except_link: str = "") -> list[str]:
    """The subnets this host has a way to (never the default one), in its main table, but not those by one link."""
    skipped = socket.if_nametoindex(except_link) if except_link and exists(except_link) else 0
    found = []
    for message in _dump(_GETROUTE):
        family, length, table, kind = struct.unpack_from("=BB2xBxxB", message)
        told = _attributes(message[12:])
        out = struct.unpack("=I", told[_OUT])[0] if _OUT in told else 0
        if table == _MAIN and kind == _UNICAST and length and _DESTINATION in told and out != skipped:
            found.append(f"{socket.inet_ntop(family, told[_DESTINATION])}/{length}")
    return sorted(set(found))


def has_default_route(family: int) -> bool:
    """Whether this host knows a way to everywhere, by IPv4 or IPv6."""
    for message in _dump(_GETROUTE):
        seen, length, table, kind = struct.unpack_from("=BB2xBxxB", message)
        if (seen, length, table, kind) == (family, 0, _MAIN, _UNICAST):
            return True
    return False


def learned_from_routers() -> set[str]:
    """The links by which this host goes to what IPv6 routers told it of."""
    found = set()
    for message in _dump(_GETROUTE):
        family, protocol = struct.unpack_from("=B4xB", message)
        told = _attributes(message[12:])
        if family == socket.AF_INET6 and protocol == _BY_ROUTERS and _OUT in told:
            with contextlib.suppress(OSError):  # the link is just going
                found.add(socket.if_indextoname(struct.unpack("=I", told[_OUT])[0]))
    return found


def exists(link: str) -> bool:
    """Whether this host has a link of that name."""
    try:
        socket.if_nametoindex(link)
    except OSError:
        return False
    return True
