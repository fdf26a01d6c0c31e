"""Who has an address that was another's is told of to its neighbours, in its name and before it says anything itself.

Otherwise they would send to the former one's card for up to a minute (arp(7): 45 s, and the probes). Most guests would say it
themselves when they take an address, but not all, and one that was saved takes none. It is said to each of the others' cards, not
on the network as a whole: a guest that is just trying whether its address is free must not hear of it from us.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Final

from insula.networks import naming
from insula.networks.ground import Fabric
from insula.networks.plan import Attached

_EVERYBODY: Final = "ff:ff:ff:ff:ff:ff"
_ALL_NODES: Final = ("33:33:00:00:00:01", "ff02::1")  # RFC 2464 section 7, RFC 4291 section 2.7.1
_ARP, _IPV4, _IPV6, _ICMPV6 = 0x0806, 0x0800, 0x86DD, 58
_REQUEST: Final = 1
_ADVERTISES: Final = 136
_OVERRIDE: Final = 1 << 29
_HARDWARE_ADDRESS: Final = 2  # option of an advertisement, RFC 4861 section 4.6.1


def announce(fabric: Fabric, attached: Attached) -> None:
    """Tell those of a card's network that it may speak with, whose cards are up; of one on a LAN no address is known.

    Raises HostLacks when the holder refuses.
    """
    said, others = frames(attached), [card for card in fabric.of_network(attached.nic.network) if _hears(card, attached)]
    if not said or not others or not attached.nic.up:
        return
    with fabric.holder.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        for card in others:
            for frame in said:
                with contextlib.suppress(OSError):  # it may be just ending
                    sender.sendto(frame, (naming.tap_name(card.nic.key), 0))


def _hears(card: Attached, of: Attached) -> bool:
    alone = any(each.firewall.isolated or each.network.isolated for each in (card, of))
    return card.nic.key != of.nic.key and card.nic.up and not alone


def frames(attached: Attached) -> list[bytes]:
    """Pure: what says where a card's addresses are: an ARP announcement (RFC 5227, section 2.3) and an unsolicited neighbour
    advertisement (RFC 4861, section 7.2.6)."""
    nic = attached.nic
    mac, found = _mac(nic.mac), []
    if nic.ipv4:
        address = socket.inet_aton(nic.ipv4)
        body = struct.pack("!HHBBH", 1, _IPV4, 6, 4, _REQUEST) + mac + address + bytes(6) + address
        found.append(_mac(_EVERYBODY) + mac + struct.pack("!H", _ARP) + body)
    if nic.ipv6 and attached.segment is None:  # nobody behind a segment speaks IPv6
        own, all_nodes = (socket.inet_pton(socket.AF_INET6, each) for each in (nic.ipv6, _ALL_NODES[1]))
        said = struct.pack("!BBHI", _ADVERTISES, 0, 0, _OVERRIDE) + own + bytes([_HARDWARE_ADDRESS, 1]) + mac
        summed = _checksum(own + all_nodes + struct.pack("!II", len(said), _ICMPV6) + said)
        header = struct.pack("!IHBB", 6 << 28, len(said), _ICMPV6, 255) + own + all_nodes
        frame = _mac(_ALL_NODES[0]) + mac + struct.pack("!H", _IPV6) + header
        found.append(frame + said[:2] + struct.pack("!H", summed) + said[4:])
    return found


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _checksum(data: bytes) -> int:
    """As in RFC 1071; ``data`` is of even length."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
