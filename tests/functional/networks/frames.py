"""Frames as a guest that lies would send them, in hex."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from tests.functional.networks.node import checksum

EVERYBODY = "ff:ff:ff:ff:ff:ff"
ALL_NODES = "33:33:00:00:00:01"
ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD


def ethernet(destination: str, source: str, kind: int, body: bytes) -> str:
    return (_mac(destination) + _mac(source) + struct.pack("!H", kind) + body).hex()


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _ip(text: str) -> bytes:
    return ip_address(text).packed


def arp(source: str, says: tuple[str, str], asks: str, *, reply: bool = False, destination: str = EVERYBODY) -> str:
    """``says``: the hardware address and the address of who claims to send this."""
    body = struct.pack("!HHBBH", 1, IPV4, 6, 4, 2 if reply else 1) + _mac(says[0]) + _ip(says[1]) + bytes(6) + _ip(asks)
    return ethernet(destination, source, ARP, body)


def udp4(mac: tuple[str, str], address: tuple[str, str], ports: tuple[int, int], word: bytes) -> str:
    """Each pair is whence and whither."""
    datagram = struct.pack("!HHHH", *ports, 8 + len(word), 0) + word
    return ethernet(mac[1], mac[0], IPV4, _ipv4(address, 17, datagram))


def _ipv4(address: tuple[str, str], protocol: int, body: bytes) -> bytes:
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0, _ip(address[0]), _ip(address[1]))
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + body


def tagged(frame: str, tag: int) -> str:
    """The same frame on a VLAN."""
    raw = bytes.fromhex(frame)
    return (raw[:12] + struct.pack("!HH", 0x8100, tag) + raw[12:]).hex()


def udp6(mac: tuple[str, str], address: tuple[str, str], ports: tuple[int, int], word: bytes) -> str:
    datagram = struct.pack("!HHHH", *ports, 8 + len(word), 0) + word
    return _ipv6(mac, address, 17, datagram, 6)


def icmp6(mac: tuple[str, str], address: tuple[str, str], kind: int, body: bytes) -> str:
    return _ipv6(mac, address, 58, struct.pack("!BBH", kind, 0, 0) + body, 2)


def _ipv6(mac: tuple[str, str], address: tuple[str, str], protocol: int, body: bytes, sum_at: int) -> str:
    source, target = _ip(address[0]), _ip(address[1])
    total = checksum(source + target + struct.pack("!II", len(body), protocol) + body)
    body = body[:sum_at] + struct.pack("!H", total) + body[sum_at + 2 :]
    return ethernet(mac[1], mac[0], IPV6, struct.pack("!IHBB", 6 << 28, len(body), protocol, 255) + source + target + body)


def advertisement(mac: tuple[str, str], address: tuple[str, str], target: str, hardware: str) -> str:
    """Neighbour advertisement (RFC 4861, 4.4): ``target`` is at ``hardware``, and overrides what was known."""
    return icmp6(mac, address, 136, struct.pack("!I", 0x20000000) + _ip(target) + b"\x02\x01" + _mac(hardware))


def router(mac: tuple[str, str], source: str) -> str:
    """Router advertisement (RFC 4861, 4.2): I am your way out."""
    return icmp6(mac, (source, "ff02::1"), 134, struct.pack("!BBHII", 64, 0, 1800, 0, 0))
