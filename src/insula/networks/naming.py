"""What links, tables, chains and hardware addresses of the fabric are called: all follows from keys of 8 hex digits.

A link's name holds at most 15 characters, and a name that follows from a key needs no register that could be wrong.
"""

from __future__ import annotations

import zlib
from typing import Final

from insula.model.addresses import slaac_address
from insula.store import names

UPLINK: Final = "up0"
TABLE: Final = "insula"
home_key = names.home_key
BRIDGES: Final = "b*"
TAPS: Final = "t*"


def bridge_name(network: str) -> str:
    return f"b{network}"


def tap_name(key: str) -> str:
    return f"t{key}"


def shaper_name(key: str) -> str:
    """The link through which what a card sends is slowed down.

    Names never begin with ``if``: what is called ``if2…`` and is not there is the second link for ip(8).
    """
    return f"s{key}"


def host_link(home: str) -> str:
    """The host's end of the pair that leads into the fabric; the other end is `UPLINK`."""
    return f"v{home}"


def lan_host_link(network: str) -> str:
    """The end, on the LAN's bridge of the host, of the pair that leads into a bridged network."""
    return f"h{network}"


def lan_link(network: str) -> str:
    """The other end of that pair, in the fabric."""
    return f"p{network}"


def lan_vlan_link(network: str) -> str:
    """The tagged link on `lan_link`, or on the host's card that macvtaps are made of."""
    return f"q{network}"


def macvtap_name(key: str) -> str:
    return f"m{key}"


def host_table(home: str) -> str:
    """Our table in the host's own namespace."""
    return f"{TABLE}_{home}"


def domain_sets(key: str, domain: str) -> tuple[str, str]:
    """The sets of a domain that rules of a card name, for IPv4 and IPv6: dnsmasq fills them with what it answers."""
    which = f"{zlib.crc32(domain.lower().rstrip('.').encode()):08x}_{key}"
    return f"domain4_{which}", f"domain6_{which}"


def counter_name(what: str, key: str) -> str:
    """A counter of a card: ``spoofed``, ``egress`` (what its profile refused) or a `rule_counter`."""
    return f"{what}_{key}"


def rule_counter(rule: str) -> str:
    """What of a card's counters is a rule's, the same wherever among others it stands."""
    return f"rule{zlib.crc32(rule.encode()):08x}"


def name_mark(machine: str) -> int:
    """What a machine's name is for rules: they cannot compare text."""
    return zlib.crc32(machine.encode())


def mark(key: str) -> int:
    """What packets of a card carry from the bridge to the router, which no longer sees the card they came by."""
    return int(key, 16)


def bridge_mac(network: str) -> str:
    """A locally administered hardware address for a network's bridge, always the same: guests remember their gateway's."""
    return "0a:1d:" + ":".join(network[at : at + 2] for at in range(0, 8, 2))


def link_local(mac: str) -> str:
    return slaac_address("fe80::/64", mac)
