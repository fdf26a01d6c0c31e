"""What machines of one network may send each other: from tap to tap of a bridge, where the router's rules are never asked.

Not every kernel follows connections in bridges, so the little that is needed is kept here, per card that has rules: whom it
answers and who answers it. As with the router's rules only who began a flow is judged, and each of its packets anew. A machine
that a rule names is known by the taps it is at, whatever addresses it uses.
"""

from __future__ import annotations

from typing import Final

from insula.model.network import MACHINE_PEER, Action, Direction, Rule, format_rule, peer_kind
from insula.networks import naming
from insula.networks.guard import BRIDGE, FILLED
from insula.networks.matching import LOCAL, PORTED, flow, matches, shared_sets
from insula.networks.plan import Attached
from insula.networks.terms import (
    ACCEPT,
    DROP,
    RETURN,
    Holding,
    concat,
    counted,
    jump,
    link,
    match,
    meta,
    pair,
    payload,
    put,
    remember,
    vmap,
)

_SENDING: Final = "sending"
_GETTING: Final = "getting"
_ISOLATED: Final = "isolated"
_NAMED: Final = "named"  # which tap is at a machine of which name: rules need not change when machines come, go and are renamed
_KEPT: Final = 3600  # seconds without a packet of who began

# What is known of flows: protocol, hardware address of the other, port of the other, port of the card.
_FLOW: Final = "inet_proto . ether_addr . inet_service . inet_service"
_MOST: Final = "size 16384; flags dynamic,timeout; "


# Named, as a kernel slows down with the number of sets, and each rule with a set of its own would make one for each card.
_ANSWERS: Final = {
    "neighbourly": ("icmpv6_type", ["nd-neighbor-solicit", "nd-neighbor-advert", "nd-router-solicit"]),
    "answers4": ("icmp_type", ["echo-reply", "destination-unreachable", "time-exceeded", "parameter-problem"]),
    "answers6": (
        "icmpv6_type",
        ["echo-reply", "destination-unreachable", "packet-too-big", "time-exceeded", "parameter-problem"],
    ),
}


def base() -> list[str]:
    either_way: list[list[str]] = [
        [match(meta("iifname"), "@isolated"), match(meta("oifname"), link(naming.TAPS)), DROP],
        [match(meta("oifname"), "@isolated"), match(meta("iifname"), link(naming.TAPS)), DROP],
        [match(meta("protocol"), "arp"), ACCEPT],
        [vmap(meta("iifname"), _SENDING)],
        [vmap(meta("oifname"), _GETTING)],
    ]
    return [
        BRIDGE.set(_ISOLATED, "ifname"),
        BRIDGE.set(_NAMED, "ifname . mark"),
        *[BRIDGE.set(name, "ifname . ether_addr", FILLED) for name in ("askers", "called")],
        BRIDGE.map(_SENDING, "ifname"),
        BRIDGE.map(_GETTING, "ifname"),
        *shared_sets(BRIDGE),
        *[
            command
            for name, (kind, values) in _ANSWERS.items()
            for command in (BRIDGE.set(name, kind), BRIDGE.put(name, *values))
        ],
        *BRIDGE.base_chain("peers", "filter", "forward", 0),
        *BRIDGE.rules("peers", either_way),
    ]


def cleared() -> list[str]:
    """Forget all cards. To be followed, in the same transaction, by those there are."""
    return [
        BRIDGE.clear("set", _ISOLATED),
        BRIDGE.clear("set", _NAMED),
        BRIDGE.clear("set", "askers"),
        BRIDGE.clear("set", "called"),
        BRIDGE.clear("map", _SENDING),
        BRIDGE.clear("map", _GETTING),
    ]


def nic(attached: Attached) -> list[str]:
    """Peers' rules for a card; of one that has none nothing but look-ups that fail."""
    held = holds(attached)
    commands = [BRIDGE.counter(name) for name in held.counters]
    commands += [BRIDGE.set(name, kind, more) for name, kind, more in held.sets]
    if is_restricted(attached):
        commands += _chains(attached)
    return commands + [BRIDGE.put(name, element) for name, element in held.elements]


def is_restricted(attached: Attached) -> bool:
    return attached.firewall.profile != "open" or bool(attached.firewall.rules)


def holds(attached: Attached) -> Holding:
    key, tap = attached.nic.key, link(naming.tap_name(attached.nic.key))
    alone = attached.firewall.isolated or attached.network.isolated
    known = ((_NAMED, concat(tap, str(naming.name_mark(attached.machine)))), *(((_ISOLATED, tap),) if alone else ()))
    if not is_restricted(attached):
        return Holding(elements=known)
    return Holding(
        chains=tuple(f"{which}_{key}" for which in ("sending", "getting", "egress", "ingress")),
        elements=(*known, (_SENDING, pair(tap, jump(f"sending_{key}"))), (_GETTING, pair(tap, jump(f"getting_{key}")))),
        sets=tuple((f"{which}_{key}", _FLOW, _MOST) for which in ("asked", "begun")),
        counters=tuple(naming.counter_name(what, key) for what in ("egress", *rule_counters(attached))),
    )


def rule_counters(attached: Attached) -> list[str]:
    return list(dict.fromkeys(map(rule_counter, attached.firewall.rules)))


def rule_counter(rule: Rule) -> str:
    return naming.rule_counter(format_rule(rule))


def _chains(attached: Attached) -> list[str]:
    key = attached.nic.key
    asked, begun = (f"asked_{key}", "askers"), (f"begun_{key}", "called")
    return [
        *BRIDGE.chain(f"egress_{key}", [*_judged(attached, "egress"), *_closing(attached)]),
        *BRIDGE.chain(f"ingress_{key}", _judged(attached, "ingress")),
        *BRIDGE.chain(f"sending_{key}", _way("daddr", asked, f"egress_{key}", begun)),
        *BRIDGE.chain(f"getting_{key}", _way("saddr", begun, f"ingress_{key}", asked)),
    ]


def _closing(attached: Attached) -> list[list[str]]:
    """What the profile says where no rule fits. On a network of ours other machines are never the internet; on a bridged one
    all the world is behind its ports, and so are the servers of DHCP and DNS that a guest of the LAN cannot do without."""
    profile, refuse = attached.firewall.profile, [counted(naming.counter_name("egress", attached.nic.key)), DROP]
    if profile == "open":
        return []
    if attached.network.mode != "bridge":
        return [refuse]
    leases: list[list[str]] = [[match(payload("udp", "dport"), port), RETURN] for port in (67, 547)]
    if profile == "none":
        return [*leases, refuse]
    names: list[str] = [PORTED, match(payload("th", "dport"), 53), RETURN]
    return [*leases, names, *[[local, *refuse] for local in LOCAL]]


def _way(other: str, known: tuple[str, str], judge: str, learned: tuple[str, str]) -> list[list[str]]:
    """One way past a card: ``other`` is the field with the other's hardware address.

    What is in ``known`` (flows, and with whom) is an answer, the rest is for the chain ``judge``; what that lets pass is put
    into ``learned``, so that answers to it will be known.
    """
    peer, tap = payload("ether", other), meta("iifname" if other == "daddr" else "oifname")
    sport, dport = payload("th", "sport"), payload("th", "dport")
    theirs, ours = (dport, sport) if other == "daddr" else (sport, dport)
    known_flow, partner = concat(meta("l4proto"), peer, theirs, ours), concat(tap, peer)
    return [
        [match(payload("icmpv6", "type"), "@neighbourly"), RETURN],
        [PORTED, match(known_flow, f"@{known[0]}"), RETURN],
        [match(payload("icmp", "type"), "@answers4"), match(partner, f"@{known[1]}"), RETURN],
        [match(payload("icmpv6", "type"), "@answers6"), match(partner, f"@{known[1]}"), RETURN],
        [jump(judge)],
        [PORTED, remember(learned[0], known_flow, _KEPT)],
        [remember(learned[1], partner, _KEPT)],
    ]


def _judged(attached: Attached, direction: Direction) -> list[list[str]]:
    verdicts: dict[Action, str] = {"allow": RETURN, "deny": DROP}
    return [
        [*fit, counted(naming.counter_name(rule_counter(rule), attached.nic.key)), verdicts[rule.action]]
        for rule in attached.firewall.rules
        if rule.direction == direction
        for fit in (_named(rule) if peer_kind(rule.peer) == "machine" else matches(rule))  # of a domain nothing: see `policy`
    ]


def _named(rule: Rule) -> list[list[str]]:
    """What fits a rule that names a machine. The mark is of no more use to a frame that leaves by a bridge, and it is all that
    a set can be asked for beside what is in a frame."""
    end, number = (
        meta("oifname" if rule.direction == "egress" else "iifname"),
        naming.name_mark(rule.peer.removeprefix(MACHINE_PEER)),
    )
    return [[*flow(rule), put(meta("mark"), number), match(concat(end, meta("mark")), f"@{_NAMED}")]]
