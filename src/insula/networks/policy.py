"""The router's rules: who reaches the world, the host and other networks, and what reaches a machine from there.

A packet carries its card's mark since the guard at its tap. Answers pass freely; each packet of who began a flow is judged
anew, so that a new rule also ends what was there before it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Final

from insula.model.network import NetworkSpec, Rule, format_rule, peer_kind
from insula.networks import naming
from insula.networks.matching import LOCAL, flow, matches, shared_sets
from insula.networks.peers import rule_counter, rule_counters
from insula.networks.plan import Attached, Uplink, gateway4, gateway6
from insula.networks.terms import (
    ACCEPT,
    DROP,
    MASQUERADE,
    PROHIBITED,
    RESET,
    Holding,
    Table,
    concat,
    counted,
    ct,
    either,
    jump,
    link,
    match,
    meta,
    pair,
    payload,
    put,
    vmap,
)

INET: Final = Table("inet", naming.TABLE)

# How long an address counts as a domain's after dnsmasq named it. Guests keep answers for `dns.ANSWER_SECONDS`, much less.
DOMAIN_SECONDS: Final = 300

_ANSWER: Final = [match(ct("state"), "established,related"), match(ct("direction"), "reply"), ACCEPT]
_REFUSE: Final = jump("refuse")
_KNOWN: Final = match(ct("state"), "established,related")
_FROM_MACHINES: Final = match(meta("iifname"), link(naming.BRIDGES))
_TO_MACHINES: Final = match(meta("oifname"), link(naming.BRIDGES))
_FROM_OUTSIDE: Final = match(meta("iifname"), link(naming.UPLINK))
_TO_OUTSIDE: Final = match(meta("oifname"), link(naming.UPLINK))


def base(uplink: Uplink | None, host_addresses: Iterable[str]) -> list[str]:
    """The frame. ``host_addresses`` are the host's own, which no machine reaches, whatever the way."""
    host = sorted(set(host_addresses))
    return [
        INET.set("nats", "ifname"),
        INET.set("services4", "ifname . ipv4_addr"),
        INET.set("services6", "ifname . ipv6_addr"),
        INET.set("mute", "mark"),
        INET.set("host4", "ipv4_addr"),
        INET.set("host6", "ipv6_addr"),
        *INET.only("host4", *[each for each in host if ":" not in each]),
        *INET.only("host6", *[each for each in host if ":" in each]),
        *shared_sets(INET),
        INET.map("egress", "mark"),
        INET.map("ingress4", "ipv4_addr"),
        INET.map("ingress6", "ipv6_addr"),
        # What was open ends at once for the machine too; what is new is told that it is forbidden, not that nobody is there.
        *INET.chain("refuse", [[_KNOWN, match(meta("l4proto"), "tcp"), RESET], [PROHIBITED]]),
        *_input(uplink),
        *_forward(),
        *_masquerade(uplink),
    ]


def _input(uplink: Uplink | None) -> list[str]:
    """To the fabric itself: DHCP, DNS, ping and neighbours, of a machine's own network only; from the host DNS and ping."""
    names: list[str] = [match(meta("l4proto"), either("tcp", "udp")), match(payload("th", "dport"), 53)]
    echo = either("echo-request", "nd-neighbor-solicit", "nd-neighbor-advert", "nd-router-solicit", "mld2-listener-report")
    services: list[list[str]] = [
        [match(payload("udp", "dport"), either(67, 547)), ACCEPT],
        [match(payload("icmpv6", "type"), echo), ACCEPT],
        [match(payload("icmp", "type"), "echo-request"), ACCEPT],
        [*names, match(meta("mark"), "@mute"), DROP],
        [*names, ACCEPT],
    ]
    rules: list[list[str]] = [
        [match(meta("iifname"), link("lo")), ACCEPT],
        [_KNOWN, ACCEPT],
        [_FROM_MACHINES, match(concat(meta("iifname"), payload("ip", "daddr")), "@services4"), jump("services")],
        [_FROM_MACHINES, match(concat(meta("iifname"), payload("ip6", "daddr")), "@services6"), jump("services")],
        [_FROM_MACHINES, match(payload("ip6", "daddr"), either("fe80::/10", "ff02::/16")), jump("services")],
    ]
    if uplink is not None:
        rules += [
            [_FROM_OUTSIDE, match(payload("ip", "saddr"), uplink.host4), jump("services")],
            [_FROM_OUTSIDE, match(payload("ip6", "saddr"), uplink.host6), jump("services")],
        ]
    neighbours = either("nd-neighbor-solicit", "nd-neighbor-advert")
    rules.append([_FROM_OUTSIDE, match(payload("icmpv6", "type"), neighbours), ACCEPT])
    return [
        *INET.chain("services", services),
        *INET.base_chain("input", "filter", "input", 0, "drop"),
        *INET.rules("input", rules),
    ]


def _forward() -> list[str]:
    rules: list[list[str]] = [
        list(_ANSWER),
        [_FROM_MACHINES, _TO_MACHINES, DROP],
        [_FROM_MACHINES, match(payload("ip", "daddr"), "@host4"), _REFUSE],
        [_FROM_MACHINES, match(payload("ip6", "daddr"), "@host6"), _REFUSE],
        [match(meta("iifname"), "@nats"), _TO_OUTSIDE, vmap(meta("mark"), "egress")],
        [_FROM_OUTSIDE, match(meta("oifname"), "@nats"), vmap(payload("ip", "daddr"), "ingress4")],
        [_FROM_OUTSIDE, match(meta("oifname"), "@nats"), vmap(payload("ip6", "daddr"), "ingress6")],
    ]
    return [*INET.base_chain("forward", "filter", "forward", 0, "drop"), *INET.rules("forward", rules)]


def _masquerade(uplink: Uplink | None) -> list[str]:
    """Where pasta is the uplink it knows one address only; as root the host hides the networks, and reaches them itself."""
    rules: list[list[str]] = [] if uplink is not None else [[_TO_OUTSIDE, MASQUERADE]]
    return [*INET.base_chain("outside", "nat", "postrouting", 100), *INET.rules("outside", rules)]


def network(network: str, spec: NetworkSpec) -> list[str]:
    return [INET.put(name, element) for name, element in network_holds(network, spec).elements]


def network_holds(network: str, spec: NetworkSpec) -> Holding:
    bridge = link(naming.bridge_name(network))
    elements: list[tuple[str, str]] = [("nats", bridge)] if spec.mode == "nat" else []
    if gateway := gateway4(spec):
        elements += [("services4", concat(bridge, each)) for each in (gateway, "255.255.255.255")]
    if gateway := gateway6(spec):
        elements.append(("services6", concat(bridge, gateway)))
    return Holding(elements=tuple(elements))


def nic(attached: Attached) -> list[str]:
    """A card's rules between its network and the outside; a bridged network has no outside here."""
    if attached.network.mode == "bridge":
        return []
    held, key = holds(attached), attached.nic.key
    return [
        *[INET.counter(name) for name in held.counters],
        *[INET.set(name, kind, more) for name, kind, more in held.sets],
        *INET.chain(f"egress_{key}", _egress(attached)),
        *INET.chain(f"ingress_{key}", [*_judged(attached, "ingress"), [ACCEPT]]),
        *[INET.put(name, element) for name, element in held.elements],
    ]


_KINDS: Final = ("ipv4_addr", "ipv6_addr")
_EXPIRING: Final = f"flags timeout; timeout {DOMAIN_SECONDS}s; "


def holds(attached: Attached) -> Holding:
    if attached.network.mode == "bridge":
        return Holding()
    card, rules = attached.nic, attached.firewall.rules
    elements: list[tuple[str, str]] = [("egress", pair(naming.mark(card.key), jump(f"egress_{card.key}")))]
    elements += [("ingress4", pair(card.ipv4, jump(f"ingress_{card.key}")))] if card.ipv4 else []
    elements += [("ingress6", pair(card.ipv6, jump(f"ingress_{card.key}")))] if card.ipv6 else []
    if attached.firewall.profile == "none" and not any(rule.action == "allow" and rule.direction == "egress" for rule in rules):
        elements.append(("mute", str(naming.mark(card.key))))  # what asks for names could tell the outside anything by them
    return Holding(
        chains=(f"egress_{card.key}", f"ingress_{card.key}"),
        elements=tuple(elements),
        sets=tuple(
            (name, kind, _EXPIRING)
            for domain in domains(attached)
            for name, kind in zip(naming.domain_sets(card.key, domain), _KINDS, strict=True)
        ),
        counters=tuple(naming.counter_name(what, card.key) for what in ("egress", *rule_counters(attached))),
    )


def domains(attached: Attached) -> list[str]:
    """The domains that a card's rules name, each once."""
    return sorted({rule.peer for rule in attached.firewall.rules if peer_kind(rule.peer) == "domain"})


def _egress(attached: Attached) -> list[list[str]]:
    rules, refuse = _judged(attached, "egress"), [counted(naming.counter_name("egress", attached.nic.key)), _REFUSE]
    if attached.firewall.profile == "none":
        return [*rules, refuse]
    if attached.firewall.profile == "internet-only":
        rules += [[local, *refuse] for local in LOCAL]
    return [*rules, [ACCEPT]]


def _judged(attached: Attached, direction: str) -> list[list[str]]:
    found: list[list[str]] = []
    for rule in attached.firewall.rules:
        if rule.direction != direction:
            continue
        verdict = [
            counted(naming.counter_name(rule_counter(rule), attached.nic.key)),
            ACCEPT if rule.action == "allow" else _REFUSE,
        ]
        if peer_kind(rule.peer) == "domain":
            found += _domain(rule, naming.domain_sets(attached.nic.key, rule.peer), verdict)
        else:
            found += [[*fit, *verdict] for fit in matches(rule)]  # of a machine nothing: none is beyond its networks
    return found


def _domain(rule: Rule, sets: tuple[str, str], verdict: list[str]) -> list[list[str]]:
    """An address is a domain's for a while only; a flow that began meanwhile stays the domain's, by the rule's own mark."""
    own = zlib.crc32(format_rule(rule).encode()) | 1
    marked = put(ct("mark"), own)
    fits = [match(payload("ip", "daddr"), f"@{sets[0]}"), match(payload("ip6", "daddr"), f"@{sets[1]}")]
    return [[_KNOWN, match(ct("mark"), own), *verdict], *[[fit, *flow(rule), marked, *verdict] for fit in fits]]
