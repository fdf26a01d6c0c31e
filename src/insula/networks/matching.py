"""A firewall's rule as what nft is to compare."""

from __future__ import annotations

from insula.model.network import Rule, parse_ports, peer_kind
from insula.networks.terms import Json, either, match, meta, payload, span, subnet


def matches(rule: Rule) -> list[list[Json]]:
    """What fits ``rule``, each to be followed by its verdict. Nothing for a domain, which is no address: see `policy`.

    Raises ValueError for a peer that is a machine's name: rules name machines by address here.
    """
    kind = peer_kind(rule.peer)
    if kind == "machine":
        raise ValueError(f"'{rule.peer}' is to be an address here")
    if kind == "domain":
        return []
    if kind == "any":
        return [flow(rule)]
    return [[match(payload("ip6" if ":" in rule.peer else "ip", _end(rule)), subnet(rule.peer)), *flow(rule)]]


def _end(rule: Rule) -> str:
    return "daddr" if rule.direction == "egress" else "saddr"


def flow(rule: Rule) -> list[Json]:
    """Protocol and ports of ``rule``, as comparisons."""
    protocols = {"any": ("tcp", "udp") if rule.ports else (), "icmp": ("icmp", "ipv6-icmp")}.get(rule.protocol, (rule.protocol,))
    found = [match(meta("l4proto"), either(*protocols))] if protocols else []
    return [*found, match(payload("th", "dport"), span(*parse_ports(rule.ports)))] if rule.ports else found
