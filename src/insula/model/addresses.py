"""Addresses that follow from others."""

from __future__ import annotations


def slaac_address(prefix: str, mac: str) -> str:
    """The address that a host with ``mac`` gives itself unasked in ``prefix``, such as ``fd00:1::/64`` (RFC 4291, appendix A)."""
    from ipaddress import IPv6Address, IPv6Network

    raw = bytes.fromhex(mac.replace(":", ""))
    own = bytes([raw[0] ^ 2]) + raw[1:3] + b"\xff\xfe" + raw[3:]
    return str(IPv6Address(int(IPv6Network(prefix).network_address) | int.from_bytes(own, "big")))
