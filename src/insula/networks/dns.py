"""A network's DHCP, router advertisements and names: how its dnsmasq is started and what it reads. Pure.

Addresses are given to cards we know only, always the same, and each machine is ``NAME.insula`` to the others. What a domain
rule names is put by dnsmasq itself into nft's sets, before the asking guest gets the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from insula.model.network import NetworkSpec
from insula.networks import naming, policy
from insula.networks.plan import Attached, gateway4, gateway6

DOMAIN: Final = "insula"
LEASE: Final = "12h"  # of an address that is always the same: only how often a guest asks again

# How long a guest may keep an answer where domains have rules: much shorter than an address then counts as the domain's.
ANSWER_SECONDS: Final = 5

CONFIG: Final = "dnsmasq.conf"
CARDS: Final = "cards"  # a file per card, watched by dnsmasq: its lease
NAMES: Final = "names"  # a file per card, watched by dnsmasq: its names


def dnsmasq_argv(folder: str) -> list[str]:
    """The command, to be run inside the fabric with the rights that DHCP and nft's sets need; stays in the foreground.

    ``folder`` holds `CONFIG`; nothing is written. It must not try to become anybody: its user namespace may know one user only.
    """
    return ["dnsmasq", "--keep-in-foreground", "--log-facility=-", "--user=", "--group=", f"--conf-file={folder}/{CONFIG}"]


def dnsmasq_config(
    network: str,
    spec: NetworkSpec,
    folder: str,
    resolvers: Sequence[str],
    domains: Iterable[tuple[str, str]] = (),
    *,
    shared: bool = False,
) -> str:
    """What `CONFIG` holds. ``resolvers`` answer for the world; a private network has none, and names of its machines only.

    ``domains`` are the pairs (domain, key of the card) of all domain rules on this network. Reading them anew takes a restart.
    ``shared``: there are machines that ask other networks' servers, too: these must be told that it does not know a name, not
    that there is none.
    """
    bridge = naming.bridge_name(network)
    lines = [
        f"interface={bridge}",
        "except-interface=lo",
        "bind-interfaces",
        "no-resolv",
        "no-hosts",
        "no-ping",
        "pid-file=",
        f"domain={DOMAIN}",
        # What cannot be asked, as nobody may send to everybody, is refused at once; then a guest asks its next server.
        f"server=/{DOMAIN}/255.255.255.255" if shared else f"local=/{DOMAIN}/",
        "domain-needed",
        "bogus-priv",
        "dhcp-authoritative",
        "leasefile-ro",  # all leases follow from the files of cards
        f"dhcp-hostsdir={folder}/{CARDS}",
        f"hostsdir={folder}/{NAMES}",
        "quiet-dhcp",
        "quiet-dhcp6",
        "quiet-ra",
        *_addresses(bridge, spec),
    ]
    if spec.mode == "nat":
        lines += [f"server={resolver}" for resolver in resolvers]
    watched = sorted({(domain.lower().rstrip("."), key) for domain, key in domains})
    if watched:  # every answer must come by the sets, so none is kept here or for long by a guest
        lines += ["cache-size=0", f"max-ttl={ANSWER_SECONDS}"]
        lines += [_watch(domain, key) for domain, key in watched]
    return "\n".join(lines) + "\n"


def _addresses(bridge: str, spec: NetworkSpec) -> list[str]:
    lines = []
    if spec.ipv4 and (gateway := gateway4(spec)):
        from ipaddress import IPv4Network

        subnet = IPv4Network(spec.ipv4)
        lines += [
            f"dhcp-range={subnet.network_address},static,{subnet.netmask},{LEASE}",
            f"dhcp-option=option:dns-server,{gateway}",
        ]
        # A private network leads nowhere: it names no router.
        lines.append(f"dhcp-option=option:router,{gateway}" if spec.mode == "nat" else "dhcp-option=option:router")
    if spec.ipv6 and (gateway := gateway6(spec)):
        prefix = spec.ipv6.partition("/")[0]
        life = 1800 if spec.mode == "nat" else 0
        lines += ["enable-ra", f"dhcp-range={prefix},static,slaac,64,{LEASE}", f"ra-param={bridge},mtu:1500,60,{life}"]
        lines.append(f"dhcp-option=option6:dns-server,[{gateway}]")
    return lines


def _watch(domain: str, key: str) -> str:
    """Addresses of ``domain``, and of all names below it, go into the card's sets of the router's table."""
    four, six = naming.domain_sets(key, domain)
    return f"nftset=/{domain}/4#inet#{naming.TABLE}#{four},6#inet#{naming.TABLE}#{six}"


def watched_domains(cards: Iterable[Attached]) -> list[tuple[str, str]]:
    """The ``domains`` for `dnsmasq_config`."""
    return sorted({(domain, attached.nic.key) for attached in cards for domain in policy.domains(attached)})


def card_file(attached: Attached) -> str:
    """What a file in `CARDS`, named by the card's key, holds: its lease."""
    nic = attached.nic
    parts = [nic.mac, *([nic.ipv4] if nic.ipv4 else []), *([f"[{nic.ipv6}]"] if nic.ipv6 else [])]
    return ",".join([*parts, attached.machine]) + "\n"


def names_file(attached: Attached) -> str:
    """What a file in `NAMES`, named by the card's key, holds: the machine's addresses and names, as in hosts(5)."""
    nic, name = attached.nic, attached.machine
    return "".join(f"{address} {name}.{DOMAIN} {name}\n" for address in (nic.ipv4, nic.ipv6) if address)
