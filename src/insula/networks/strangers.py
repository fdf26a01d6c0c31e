"""Packet filters of others on this host (docker's, ufw's, firewalld's) that drop what machines send by way of it.

Where several tables see a packet each may drop it, and none can take that back: so what blocks us is named, with the command
by which its owner lets us through. We change no table but our own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from insula.errors import ChildFailed, HostLacks
from insula.host import nft
from insula.host.process import find_program, run
from insula.networks import naming

_FAMILIES: Final = {"ip": "IPv4", "ip6": "IPv6", "inet": "IPv4 and IPv6"}
_PASSIVE: Final = {"counter", "log", "limit"}  # statements of a rule that every packet meets
_FINAL: Final = {"drop", "reject"}
_LEGACY: Final = (
    ("iptables-legacy", Path("/proc/net/ip_tables_names"), "IPv4"),
    ("ip6tables-legacy", Path("/proc/net/ip6_tables_names"), "IPv6"),
)
_PATIENCE: Final = 20.0  # seconds


class Blocker(msgspec.Struct, frozen=True):
    """Who drops: ``whose`` in words, by ``version`` (``IPv4``…), and the command that lets us through."""

    whose: str
    version: str
    fix: str

    def words(self) -> str:
        return f"{self.whose} drops what this host forwards by {self.version}"


def who_blocks(home_key: str) -> list[Blocker]:
    """Those on this host that drop what machines of a home send to the outside, as root. Nothing where nobody can say."""
    link = naming.host_link(home_key)
    try:
        return [*blockers(nft.objects(None, "ruleset"), link), *_legacy(link)]
    except (HostLacks, ChildFailed):
        return []


def blockers(listing: Iterable[dict[str, Any]], link: str) -> list[Blocker]:
    """Pure: those in a list of rules (libnftables-json(5)) that drop what comes by ``link`` and is forwarded."""
    chains, rules = [], []
    for each in listing:
        if "chain" in each:
            chains.append(each["chain"])
        elif "rule" in each:
            rules.append(each["rule"])
    found = []
    for chain in chains:
        table = (chain["family"], chain["table"])
        if chain.get("hook") != "forward" or table[0] not in _FAMILIES or table[1].startswith(f"{naming.TABLE}_"):
            continue
        own = [rule for rule in rules if (rule["family"], rule["table"]) == table]
        last = [rule for rule in own if rule["chain"] == chain["name"]][-1:]
        drops = chain.get("policy") == "drop" or any(_drops_all(rule.get("expr", [])) for rule in last)
        if drops and not any(_names(rule.get("expr", []), link) for rule in own):
            inside = {each["name"] for each in chains if (each["family"], each["table"]) == table}
            found.append(Blocker(*_whose(chain, inside), _fix(chain, inside, link)))
    return found


def _drops_all(expressions: Sequence[dict[str, Any]]) -> bool:
    kinds = {kind for each in expressions for kind in each}
    return bool(kinds & _FINAL) and kinds <= _FINAL | _PASSIVE


def _names(expressions: Sequence[dict[str, Any]], link: str) -> bool:
    """Whether a rule is about what comes by ``link``: somebody has thought of us."""
    for each in expressions:
        compared = each.get("match", {})
        if compared.get("left") in ({"meta": {"key": "iifname"}}, {"meta": {"key": "iif"}}) and compared.get("right") == link:
            return True
    return False


def _whose(chain: dict[str, Any], inside: set[str]) -> tuple[str, str]:
    where = f"the chain '{chain['name']}' of the table '{chain['family']} {chain['table']}'"
    if chain["table"] == "firewalld":
        who = f"firewalld ({where})"
    elif any(name.startswith("ufw") for name in inside):
        who = f"ufw ({where})"
    elif any(name.startswith("DOCKER") for name in inside):
        who = f"docker ({where})"
    else:
        who = where
    return who, _FAMILIES[chain["family"]]


def _fix(chain: dict[str, Any], inside: set[str], link: str) -> str:
    if chain["table"] == "firewalld":
        return f"firewall-cmd --permanent --zone=trusted --add-interface={link} && firewall-cmd --reload"
    if any(name.startswith("ufw") for name in inside):
        return f"ufw route allow in on {link} && ufw route allow out on {link}"
    if chain["table"] == "filter" and chain["family"] in ("ip", "ip6"):
        return _by_iptables("iptables" if chain["family"] == "ip" else "ip6tables", inside, link)
    where = f"{chain['family']} {chain['table']} {chain['name']}"
    return f"nft insert rule {where} iifname {link} accept && nft insert rule {where} oifname {link} accept"


def _by_iptables(program: str, chains: Iterable[str], link: str) -> str:
    chain = "DOCKER-USER" if "DOCKER-USER" in chains else "FORWARD"
    return f"{program} -I {chain} -i {link} -j ACCEPT && {program} -I {chain} -o {link} -j ACCEPT"


def _legacy(link: str) -> list[Blocker]:
    """The same of the kernel's older packet filter, which nft does not see."""
    found = []
    for program, tables, version in _LEGACY:
        with contextlib.suppress(OSError):
            if "filter" in tables.read_text().split() and find_program(program):
                lines = run([program, "-S"], timeout=_PATIENCE).stdout.decode(errors="replace").splitlines()
                if "-P FORWARD DROP" in lines and not any(f"-i {link} " in line for line in lines):
                    chains = [line.split()[1] for line in lines if line.startswith("-N ")]
                    whose = (
                        "docker" if any(chain.startswith("DOCKER") for chain in chains) else f"the chain 'FORWARD' of {program}"
                    )
                    found.append(Blocker(whose, version, _by_iptables(program, chains, link)))
    return found
