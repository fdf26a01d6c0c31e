"""The guard at each card: a machine speaks with its own addresses only, and is neither a DHCP server nor a router.

The rules are the same for all cards; what is whose is in sets. So a card costs a few elements, and hundreds load in an instant.
Everything the guard does not know is dropped, and counted as that card's.

IPv6 addresses a guest makes up for itself are its own while nobody else has them: the first to use one keeps it for an hour
after its last packet (first come, first served, as in RFC 6620), and what a card can claim in a minute is bounded.
"""

from __future__ import annotations

from typing import Final

from insula.model.network import NetworkSpec
from insula.networks import naming
from insula.networks.plan import Attached, gateway6
from insula.networks.terms import (
    ACCEPT,
    DROP,
    RETURN,
    Holding,
    Table,
    concat,
    either,
    goto,
    jump,
    link,
    match,
    meta,
    pair,
    payload,
    put,
    raw,
    remember,
)

BRIDGE: Final = Table("bridge", naming.TABLE)
FILLED: Final = "size 65536; flags dynamic,timeout; "  # a set that rules fill

_FROM: Final = meta("iifname")
_MAC: Final = payload("ether", "saddr")
_PREFIX6: Final = raw("nh", 64, 64)  # the upper half of `ip6 saddr`
_SOURCE6: Final = raw("nh", 64, 128)  # as `ip6 saddr`
_TARGET6: Final = raw("th", 64, 128)  # of a neighbour advertisement; nft before 1.0.8 has no name for it
_BOUND6: Final = concat(_SOURCE6, _FROM)
_KEPT: Final = 3600  # seconds
_NOBODY: Final = "0.0.0.0"  # noqa: S104 (nothing listens here: it is who has no address yet)
_SLOWLY: Final = "limit rate 30/minute burst 30 packets "
_LINK_LOCAL: Final = "0xfe80000000000000"


def base() -> list[str]:
    """The rules of all guards. A tap nobody is known to be at (its card is being attached) passes nothing."""
    return [
        BRIDGE.map("marks", "ifname", "mark"),
        BRIDGE.map("spoofed", "ifname", "counter"),
        BRIDGE.set_like("prefix6", concat(_PREFIX6, _FROM)),
        BRIDGE.set_like("claimed6", _SOURCE6, FILLED),
        BRIDGE.set_like("bound6", _BOUND6, FILLED),
        BRIDGE.set("claimers", "ifname", FILLED),
        *[BRIDGE.set(name, kind) for name, kind in _SETS.items()],
        *BRIDGE.chain("liar", [[f"counter name {_FROM} map @spoofed"], [DROP]]),
        *BRIDGE.chain("claim", _claim()),
        *BRIDGE.base_chain("guard", "filter", "prerouting", -300),
        *BRIDGE.rules("guard", _rules()),
    ]


# Tap, and what a frame from it must hold: its hardware address, the same as ARP's sender, the sender's address.
_SETS: Final = {
    "cards": "ifname . ether_addr",
    "speakers": "ifname . ether_addr . ipv4_addr",
    "neighbours": "ifname . ether_addr . ether_addr . ipv4_addr",
    "strangers": "ifname . ether_addr",  # on the LAN: their addresses are its own affair
    "strange_neighbours": "ifname . ether_addr . ether_addr",
}


def _rules() -> list[list[str]]:
    liar = goto("liar")
    own, arp = concat(_FROM, _MAC), payload("arp", "saddr ether")
    sport, kind, source = payload("udp", "sport"), payload("icmpv6", "type"), payload("ip6", "saddr")
    beginners = match(kind, either("nd-neighbor-solicit", "mld-listener-report", "mld2-listener-report"))
    return [
        [match(_FROM, link(naming.TAPS), "!="), ACCEPT],
        [put(meta("mark"), f"{_FROM} map @marks")],
        [match(payload("ether", "type"), either("8021q", "8021ad")), liar],  # what they hold looks like any other packet
        [match(sport, either(67, 547)), liar],
        [match(kind, either("nd-router-advert", "nd-redirect")), liar],
        [match(concat(_FROM, _MAC, payload("ip", "saddr")), "@speakers"), ACCEPT],
        [match(concat(_FROM, _MAC, arp, payload("arp", "saddr ip")), "@neighbours"), ACCEPT],
        [
            match(own, "@cards"),
            match(payload("ip", "saddr"), _NOBODY),
            match(sport, 68),
            match(payload("udp", "dport"), 67),
            ACCEPT,
        ],
        [match(own, "@cards"), match(source, "::"), beginners, ACCEPT],
        [match(own, "@cards"), match(meta("protocol"), "ip6"), match(concat(_PREFIX6, _FROM), "@prefix6"), jump("claim")],
        [match(own, "@strangers"), match(meta("protocol"), either("ip", "ip6")), ACCEPT],
        [match(concat(_FROM, _MAC, arp), "@strange_neighbours"), ACCEPT],
        [liar],
    ]


def _claim() -> list[list[str]]:
    """Whether an IPv6 address is its sender's, or becomes it; whoever returns from here has lied."""
    keep = [remember("claimed6", _SOURCE6, _KEPT), remember("bound6", _BOUND6, _KEPT), ACCEPT]
    advertises = match(payload("icmpv6", "type"), "nd-neighbor-advert")
    return [
        [advertises, match(concat(_TARGET6, _FROM), "@bound6", "!="), RETURN],
        [match(_BOUND6, "@bound6"), *keep],
        [match(_SOURCE6, "@claimed6"), RETURN],
        [remember("claimers", _FROM, _KEPT, limit=_SLOWLY), *keep],
    ]


def cleared() -> list[str]:
    """Forget all cards and addresses. To be followed, in the same transaction, by those there are."""
    sets = ("prefix6", "claimed6", "bound6", "claimers", *_SETS)
    return [*[BRIDGE.clear("map", name) for name in ("marks", "spoofed")], *[BRIDGE.clear("set", name) for name in sets]]


def network(network: str, spec: NetworkSpec) -> list[str]:
    return [BRIDGE.put(name, element) for name, element in network_holds(network, spec).elements]


def network_holds(network: str, spec: NetworkSpec) -> Holding:
    """The addresses of a network's bridge, which no card may claim."""
    gateway = gateway6(spec)
    own = (gateway, naming.link_local(naming.bridge_mac(network))) if gateway else ()
    return Holding(elements=tuple(("claimed6", _number(each)) for each in own))


def nic(attached: Attached) -> list[str]:
    """What is a card's. To be loaded before its tap is up."""
    held = holds(attached)
    commands = [BRIDGE.counter(name) for name in held.counters]
    return commands + [BRIDGE.put(name, element) for name, element in held.elements]


def holds(attached: Attached) -> Holding:
    card, tap = attached.nic, link(naming.tap_name(attached.nic.key))
    spoofed = naming.counter_name("spoofed", card.key)
    elements: list[tuple[str, str]] = [("marks", pair(tap, naming.mark(card.key))), ("spoofed", pair(tap, f'"{spoofed}"'))]
    if attached.network.mode == "bridge":
        elements += [("strangers", concat(tap, card.mac)), ("strange_neighbours", concat(tap, card.mac, card.mac))]
    else:
        elements += [("cards", concat(tap, card.mac)), *_addresses(attached)]
    return Holding(elements=tuple(elements), counters=(spoofed,))


def _addresses(attached: Attached) -> list[tuple[str, str]]:
    card, tap, prefix = attached.nic, link(naming.tap_name(attached.nic.key)), attached.network.ipv6
    found: list[tuple[str, str]] = []
    if card.ipv4:
        found.append(("speakers", concat(tap, card.mac, card.ipv4)))
        found += [("neighbours", concat(tap, card.mac, card.mac, each)) for each in (card.ipv4, _NOBODY)]
    if card.ipv6 and prefix:
        halves = (_number(prefix.partition("/")[0])[:18], _LINK_LOCAL)
        found += [("prefix6", concat(half, tap)) for half in halves]
        for own in (card.ipv6, naming.link_local(card.mac)):  # what it has without claiming it
            found += [("claimed6", _number(own)), ("bound6", concat(_number(own), tap))]
    return found


def _number(address: str) -> str:
    from ipaddress import IPv6Address

    return f"0x{int(IPv6Address(address)):032x}"
