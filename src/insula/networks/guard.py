"""The guard at each card: a machine speaks with its own addresses only, and is neither a DHCP server nor a router.

One chain per card, found by the name of its tap. Everything it does not know is dropped and counted.

IPv6 addresses a guest makes up for itself are its own while nobody else has them: the first to use one keeps it for an hour
after its last packet (first come, first served, as in RFC 6620), and what a card can claim in a minute is bounded.
"""

from __future__ import annotations

from typing import Final

from insula.model.network import NetworkSpec, Nic
from insula.networks import naming
from insula.networks.plan import Attached, gateway6
from insula.networks.terms import (
    ACCEPT,
    DROP,
    RETURN,
    Holding,
    Json,
    Table,
    concat,
    counted,
    either,
    jump,
    match,
    meta,
    payload,
    raw,
    remember,
    vmap,
)

BRIDGE: Final = Table("bridge", naming.TABLE)

# nft's JSON cannot declare sets of what raw payload holds, and has no name for the address inside a neighbour advertisement
# before version 1.0.8. So these two are declared in nft's own language, once, before all else.
PRELUDE: Final = f"""add table bridge {naming.TABLE}
add set bridge {naming.TABLE} claimed6 {{ typeof @nh,64,128; size 65536; flags dynamic,timeout; }}
add set bridge {naming.TABLE} bound6 {{ typeof @nh,64,128 . meta iifname; size 65536; flags dynamic,timeout; }}
"""

_SOURCE6: Final = raw("nh", 64, 128)  # as `ip6 saddr`
_TARGET6: Final = raw("th", 64, 128)  # of a neighbour advertisement
_NOBODY: Final = "0.0.0.0"  # noqa: S104 (nothing listens here: it is who has no address yet)
_KEPT: Final = 3600  # seconds
_GUARDS: Final = "guards"
_CLAIM: Final = "claim"


def base() -> list[Json]:
    """The guards' frame: a tap nobody guards (its card is being attached) passes nothing."""
    icmp6 = payload("icmpv6", "type")
    slow: Json = {"limit": {"rate": 30, "per": "minute", "burst": 30}}
    return [
        BRIDGE.map(_GUARDS, "ifname"),
        *BRIDGE.base_chain("guard", "filter", "prerouting", -300),
        *BRIDGE.rules("guard", [[vmap(meta("iifname"), _GUARDS)], [match(meta("iifname"), naming.TAPS), DROP]]),
        *BRIDGE.chain(
            _CLAIM,
            [
                [match(icmp6, "nd-neighbor-advert"), match(concat(_TARGET6, meta("iifname")), "@bound6", "!="), RETURN],
                [
                    match(concat(_SOURCE6, meta("iifname")), "@bound6"),
                    remember("claimed6", _SOURCE6, _KEPT),
                    remember("bound6", concat(_SOURCE6, meta("iifname")), _KEPT),
                    ACCEPT,
                ],
                [match(_SOURCE6, "@claimed6"), RETURN],
                [
                    slow,
                    remember("claimed6", _SOURCE6, _KEPT),
                    remember("bound6", concat(_SOURCE6, meta("iifname")), _KEPT),
                    ACCEPT,
                ],
            ],
        ),
    ]


def cleared() -> list[Json]:
    """Forget all cards and addresses. To be followed, in the same transaction, by those there are."""
    return [BRIDGE.clear("map", _GUARDS), BRIDGE.clear("set", "claimed6"), BRIDGE.clear("set", "bound6")]


def network(network: str, spec: NetworkSpec) -> list[Json]:
    return [BRIDGE.put(name, element) for name, element in network_holds(network, spec).elements]


def network_holds(network: str, spec: NetworkSpec) -> Holding:
    """The addresses of a network's bridge, which no card may claim."""
    gateway = gateway6(spec)
    own = (gateway, naming.link_local(naming.bridge_mac(network))) if gateway else ()
    return Holding(elements=tuple(("claimed6", _number(each)) for each in own))


def nic(attached: Attached) -> list[Json]:
    """A card's guard. To be loaded before its tap is up."""
    held = holds(attached)
    commands = [BRIDGE.counter(name) for name in held.counters] + BRIDGE.chain(_chain(attached.nic), _rules(attached))
    return commands + [BRIDGE.put(name, element) for name, element in held.elements]


def holds(attached: Attached) -> Holding:
    card, own = attached.nic, own_addresses6(attached)
    tap = naming.tap_name(card.key)
    return Holding(
        chains=(_chain(card),),
        elements=(
            (_GUARDS, [tap, jump(_chain(card))]),
            *[("claimed6", each) for each in own],
            *[("bound6", concat(each, tap)) for each in own],
        ),
        counters=(naming.counter_name("spoofed", card.key),),
    )


def own_addresses6(attached: Attached) -> list[str]:
    """What is a card's own without claiming it: its address, and what its hardware address makes it call itself on the link."""
    if attached.network.mode == "bridge" or attached.nic.ipv6 is None:
        return []
    return [_number(attached.nic.ipv6), _number(naming.link_local(attached.nic.mac))]


def _number(address: str) -> str:
    from ipaddress import IPv6Address

    return f"0x{int(IPv6Address(address)):032x}"


def _chain(card: Nic) -> str:
    return f"guard_{card.key}"


def _rules(attached: Attached) -> list[list[Json]]:
    card = attached.nic
    refuse = [counted(naming.counter_name("spoofed", card.key)), DROP]
    udp = payload("udp", "sport")
    rules: list[list[Json]] = [
        [{"mangle": {"key": meta("mark"), "value": naming.mark(card.key)}}],
        [match(payload("ether", "saddr"), card.mac, "!="), *refuse],
        [match(payload("ether", "type"), either("8021q", "8021ad")), *refuse],  # what they hold looks like any other packet
        [match(payload("arp", "saddr ether"), card.mac, "!="), *refuse],
        [match(udp, either(67, 547)), *refuse],
        [match(payload("icmpv6", "type"), either("nd-router-advert", "nd-redirect")), *refuse],
    ]
    if attached.network.mode == "bridge":  # its addresses are the LAN's: what is its own nobody told us
        known = match(meta("protocol"), either("arp", "ip", "ip6"))
        return [*rules, [known, ACCEPT], refuse]
    return [*rules, *_ipv4(card), *_ipv6(attached), refuse]


def _ipv4(card: Nic) -> list[list[Json]]:
    if card.ipv4 is None:
        return []
    asking = match(payload("udp", "sport"), 68), match(payload("udp", "dport"), 67)
    return [
        [match(payload("arp", "saddr ip"), either(card.ipv4, _NOBODY)), ACCEPT],
        [match(payload("ip", "saddr"), card.ipv4), ACCEPT],
        [match(payload("ip", "saddr"), _NOBODY), *asking, ACCEPT],
    ]


def _ipv6(attached: Attached) -> list[list[Json]]:
    card, prefix = attached.nic, attached.network.ipv6
    if card.ipv6 is None or prefix is None:
        return []
    source, kind = payload("ip6", "saddr"), payload("icmpv6", "type")
    address, _, length = prefix.partition("/")
    ours = [{"prefix": {"addr": address, "len": int(length)}}, {"prefix": {"addr": "fe80::", "len": 64}}]
    nameless = match(kind, either("nd-neighbor-solicit", "mld-listener-report", "mld2-listener-report"))
    return [
        [match(source, "::"), nameless, ACCEPT],
        [match(source, either(*ours)), jump(_CLAIM)],
    ]
