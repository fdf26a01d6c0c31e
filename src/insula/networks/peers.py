"""What machines of one network may send each other: from tap to tap of a bridge, where the router's rules are never asked.

Not every kernel follows connections in bridges, so the little that is needed is kept here, per card that has rules: whom it
answers and who answers it. As with the router's rules only who began a flow is judged, and each of its packets anew.
"""

from __future__ import annotations

from typing import Any, Final

from insula.model.network import LOCAL_IPV4, LOCAL_IPV6, Action, Direction
from insula.networks import naming
from insula.networks.guard import BRIDGE
from insula.networks.matching import matches
from insula.networks.plan import Attached
from insula.networks.terms import (
    DROP,
    RETURN,
    Holding,
    Json,
    concat,
    counted,
    either,
    jump,
    match,
    meta,
    payload,
    remember,
    subnet,
    vmap,
)

_SENDING: Final = "sending"
_GETTING: Final = "getting"
_ISOLATED: Final = "isolated"
_KEPT: Final = 3600  # seconds without a packet of who began

# What is known of flows: protocol, hardware address of the other, port of the other, port of the card.
_FLOW: Final = ["inet_proto", "ether_addr", "inet_service", "inet_service"]
_MOST: Final[dict[str, Any]] = {"flags": ["timeout"], "size": 16384}


def base() -> list[Json]:
    either_way: list[list[Json]] = [
        [match(meta("iifname"), "@isolated"), match(meta("oifname"), naming.TAPS), DROP],
        [match(meta("oifname"), "@isolated"), match(meta("iifname"), naming.TAPS), DROP],
        [vmap(meta("iifname"), _SENDING)],
        [vmap(meta("oifname"), _GETTING)],
    ]
    return [
        BRIDGE.set(_ISOLATED, "ifname"),
        BRIDGE.map(_SENDING, "ifname"),
        BRIDGE.map(_GETTING, "ifname"),
        *BRIDGE.base_chain("peers", "filter", "forward", 0),
        *BRIDGE.rules("peers", either_way),
    ]


def cleared() -> list[Json]:
    """Forget all cards. To be followed, in the same transaction, by those there are."""
    return [BRIDGE.clear("set", _ISOLATED), BRIDGE.clear("map", _SENDING), BRIDGE.clear("map", _GETTING)]


def nic(attached: Attached) -> list[Json]:
    """Peers' rules for a card; of one that has none nothing but look-ups that fail."""
    held = holds(attached)
    commands = [BRIDGE.counter(name) for name in held.counters]
    if is_restricted(attached):
        commands += _chains(attached)
    return commands + [BRIDGE.put(name, element) for name, element in held.elements]


def sets(attached: Attached) -> list[Json]:
    """What `nic` needs to be there, loaded before it as a transaction of its own.

    nft marks a set that rules fill as dynamic when it is made together with them, but its JSON cannot say so (before 1.0.8):
    made together, the same set could not be named a second time.
    """
    return [BRIDGE.set(name, kind, **more) for name, kind, more in holds(attached).sets]


def is_restricted(attached: Attached) -> bool:
    return attached.firewall.profile != "open" or bool(attached.firewall.rules)


def holds(attached: Attached) -> Holding:
    key, tap = attached.nic.key, naming.tap_name(attached.nic.key)
    alone = attached.firewall.isolated or attached.network.isolated
    isolated = ((_ISOLATED, tap),) if alone else ()
    if not is_restricted(attached):
        return Holding(elements=isolated)
    return Holding(
        chains=tuple(f"{which}_{key}" for which in ("sending", "getting", "egress", "ingress")),
        elements=(*isolated, (_SENDING, [tap, jump(f"sending_{key}")]), (_GETTING, [tap, jump(f"getting_{key}")])),
        sets=(
            *[(f"{which}_{key}", _FLOW, _MOST) for which in ("asked", "begun")],
            *[(f"{which}_{key}", "ether_addr", _MOST) for which in ("askers", "called")],
        ),
        counters=tuple(naming.counter_name(what, key) for what in ("egress", *rule_counters(attached))),
    )


def rule_counters(attached: Attached) -> list[str]:
    return [f"rule{number}" for number in range(len(attached.firewall.rules))]


def _chains(attached: Attached) -> list[Json]:
    key = attached.nic.key
    asked, begun = (f"asked_{key}", f"askers_{key}"), (f"begun_{key}", f"called_{key}")
    return [
        *BRIDGE.chain(f"egress_{key}", [*_judged(attached, "egress"), *_closing(attached)]),
        *BRIDGE.chain(f"ingress_{key}", _judged(attached, "ingress")),
        *BRIDGE.chain(f"sending_{key}", _way("daddr", asked, f"egress_{key}", begun)),
        *BRIDGE.chain(f"getting_{key}", _way("saddr", begun, f"ingress_{key}", asked)),
    ]


def _closing(attached: Attached) -> list[list[Json]]:
    """What the profile says where no rule fits. On a network of ours other machines are never the internet; on a bridged one
    all the world is behind its ports, and so are the servers of DHCP and DNS that a guest of the LAN cannot do without."""
    profile, refuse = attached.firewall.profile, [counted(naming.counter_name("egress", attached.nic.key)), DROP]
    if profile == "open":
        return []
    if attached.network.mode != "bridge":
        return [refuse]
    leases: list[Json] = [match(payload("udp", "dport"), either(67, 547)), RETURN]
    if profile == "none":
        return [leases, refuse]
    names: list[Json] = [match(meta("l4proto"), either("tcp", "udp")), match(payload("th", "dport"), 53), RETURN]
    local = [(payload("ip", "daddr"), LOCAL_IPV4), (payload("ip6", "daddr"), LOCAL_IPV6)]
    return [leases, names, *[[match(where, either(*map(subnet, which))), *refuse] for where, which in local]]


def _way(other: str, known: tuple[str, str], judge: str, learned: tuple[str, str]) -> list[list[Json]]:
    """One way past a card: ``other`` is the field with the other's hardware address.

    What is in ``known`` (flows, and with whom) is an answer, the rest is for the chain ``judge``; what that lets pass is put
    into ``learned``, so that answers to it will be known.
    """
    peer = payload("ether", other)
    sport, dport = payload("th", "sport"), payload("th", "dport")
    theirs, ours = (dport, sport) if other == "daddr" else (sport, dport)
    flow, ported = concat(meta("l4proto"), peer, theirs, ours), match(meta("l4proto"), either("tcp", "udp"))
    neighbours = ["nd-neighbor-solicit", "nd-neighbor-advert", "nd-router-solicit"]
    icmp, icmp6 = payload("icmp", "type"), payload("icmpv6", "type")
    answers4 = ["echo-reply", "destination-unreachable", "time-exceeded", "parameter-problem"]
    answers6 = ["echo-reply", "destination-unreachable", "packet-too-big", "time-exceeded", "parameter-problem"]
    return [
        [match(meta("protocol"), "arp"), RETURN],
        [match(icmp6, either(*neighbours)), RETURN],
        [ported, match(flow, f"@{known[0]}"), RETURN],
        [match(icmp, either(*answers4)), match(peer, f"@{known[1]}"), RETURN],
        [match(icmp6, either(*answers6)), match(peer, f"@{known[1]}"), RETURN],
        [jump(judge)],
        [ported, remember(learned[0], flow, _KEPT)],
        [remember(learned[1], peer, _KEPT)],
    ]


def _judged(attached: Attached, direction: Direction) -> list[list[Json]]:
    verdicts: dict[Action, Json] = {"allow": RETURN, "deny": DROP}
    return [
        [*fit, counted(naming.counter_name(f"rule{number}", attached.nic.key)), verdicts[rule.action]]
        for number, rule in enumerate(attached.firewall.rules)
        if rule.direction == direction
        for fit in matches(rule)  # of a domain nothing: machines of one network are known by address
    ]
