"""A firewall's rule as what nft is to compare."""

from __future__ import annotations

import functools
from typing import Final

from insula.model.network import LOCAL_IPV4, LOCAL_IPV6, Rule, parse_ports, peer_kind
from insula.networks.terms import Table, match, meta, payload, span

PORTED: Final = match(meta("l4proto"), "@ported")
_PINGS: Final = match(meta("l4proto"), "@pings")
LOCAL: Final = (match(payload("ip", "daddr"), "@local4"), match(payload("ip6", "daddr"), "@local6"))


def shared_sets(table: Table) -> list[str]:
    """What is compared with for many cards: what has ports, what is icmp, and where the internet is not."""
    # Words of nft's own: names such as ipv6-icmp it looks up in /etc/protocols, which small systems do not have.
    protocols = {"ported": ("tcp", "udp"), "pings": ("icmp", "icmpv6")}
    local = {"local4": ("ipv4_addr", LOCAL_IPV4), "local6": ("ipv6_addr", LOCAL_IPV6)}
    commands = [table.set(name, "inet_proto") for name in protocols]
    commands += [table.set(name, kind, "flags interval; ") for name, (kind, _) in local.items()]
    commands += [table.put(name, *values) for name, values in protocols.items()]
    return commands + [table.put(name, *values) for name, (_, values) in local.items()]


@functools.lru_cache(1024)  # hundreds of cards have the same few
def matches(rule: Rule) -> list[list[str]]:
    """What fits ``rule``, each to be followed by its verdict. Nothing for a domain or a machine, which are no addresses: see
    `policy` and `peers`."""
    kind = peer_kind(rule.peer)
    if kind in ("domain", "machine"):
        return []
    if kind == "any":
        return [flow(rule)]
    return [[match(payload("ip6" if ":" in rule.peer else "ip", _end(rule)), rule.peer), *flow(rule)]]


def _end(rule: Rule) -> str:
    return "daddr" if rule.direction == "egress" else "saddr"


def flow(rule: Rule) -> list[str]:
    """Protocol and ports of ``rule``, as comparisons."""
    if rule.protocol == "icmp":
        return [_PINGS]
    found = [] if rule.protocol == "any" else [match(meta("l4proto"), rule.protocol)]
    return [*(found or [PORTED]), match(payload("th", "dport"), span(*parse_ports(rule.ports)))] if rule.ports else found
