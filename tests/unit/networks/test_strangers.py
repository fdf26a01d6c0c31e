"""Who else's packet filter drops what machines send; that what is said to help does is proved by tests/functional/networks."""

from __future__ import annotations

from typing import Any

import pytest

from insula.networks.strangers import blockers

LINK = "v0123abcd"


def chain(table: str, name: str, family: str = "ip", **hook: Any) -> dict[str, Any]:
    return {"chain": {"family": family, "table": table, "name": name, **hook}}


def forward(table: str, name: str, family: str = "ip", policy: str = "drop") -> dict[str, Any]:
    return chain(table, name, family, type="filter", hook="forward", prio=0, policy=policy)


def rule(table: str, name: str, *expr: dict[str, Any], family: str = "ip") -> dict[str, Any]:
    return {"rule": {"family": family, "table": table, "chain": name, "expr": list(expr)}}


def by(link: str) -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": link}}


DOCKER = [forward("filter", "FORWARD"), chain("filter", "DOCKER-USER")]
UFW = [forward("filter", "FORWARD", "ip6"), chain("filter", "ufw6-before-forward", "ip6")]
FIREWALLD = [
    forward("firewalld", "filter_FORWARD", "inet", "accept"),
    rule("firewalld", "filter_FORWARD", {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}, family="inet"),
]


@pytest.mark.parametrize(
    ("listing", "whose", "version", "fix"),
    [
        (DOCKER, "docker", "IPv4", f"iptables -I DOCKER-USER -i {LINK} -j ACCEPT && iptables -I DOCKER-USER -o {LINK} -j ACCEPT"),
        (UFW, "ufw", "IPv6", f"ufw route allow in on {LINK} && ufw route allow out on {LINK}"),
        (FIREWALLD, "firewalld", "IPv4 and IPv6", f"--zone=trusted --add-interface={LINK} "),
        ([forward("mine", "f", "inet")], "the chain 'f'", "IPv4 and IPv6", f"nft insert rule inet mine f iifname {LINK} accept"),
        ([forward("filter", "FORWARD")], "the chain 'FORWARD'", "IPv4", f"iptables -I FORWARD -i {LINK} -j ACCEPT"),
    ],
)
def test_who_drops_is_told_with_the_words_of_its_own_program(
    listing: list[dict[str, Any]], whose: str, version: str, fix: str
) -> None:
    (found,) = blockers(listing, LINK)
    assert found.whose.startswith(whose)
    assert found.version == version
    assert fix in found.fix


@pytest.mark.parametrize(
    "listing",
    [
        [],
        [forward("insula_0123abcd", "forward")],
        [forward("filter", "FORWARD", policy="accept"), rule("filter", "FORWARD", by("eth0"), {"drop": None})],
        [chain("filter", "INPUT", type="filter", hook="input", prio=0, policy="drop")],
        [*DOCKER, rule("filter", "DOCKER-USER", by(LINK), {"counter": {}}, {"accept": None})],
        [forward("insula", "peers", "bridge")],
    ],
)
def test_who_does_not_drop_ours_is_let_alone(listing: list[dict[str, Any]]) -> None:
    assert blockers(listing, LINK) == []
