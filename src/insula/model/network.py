"""Networks as they are asked for: their shape, a machine's card on one, its firewall, rates and published ports."""

from __future__ import annotations

import functools
import re
from typing import Final, Literal

import msgspec

from insula.errors import UsageError
from insula.model.names import LONGEST_SHOWN
from insula.model.text import clean

Mode = Literal["private", "nat", "bridge"]
Profile = Literal["open", "internet-only", "none"]
Action = Literal["allow", "deny"]
Direction = Literal["egress", "ingress"]
Protocol = Literal["any", "tcp", "udp", "icmp"]
Transport = Literal["tcp", "udp"]
PeerKind = Literal["any", "addresses", "domain", "machine"]

DEFAULT_NETWORK: Final = "nat"
LOOPBACK: Final = "127.0.0.1"
MACHINE_PEER: Final = "machine:"
_EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104 (compared, not listened on)

# What nobody on the internet answers for: an `internet-only` machine sends nothing there. Private (RFC 1918), shared (RFC 6598),
# link-local, loopback, benchmarks (RFC 2544), multicast and reserved; for IPv6 unique local, link-local, loopback and multicast.
LOCAL_IPV4: Final = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/3",
)
LOCAL_IPV6: Final = ("::/127", "64:ff9b:1::/48", "fc00::/7", "fe80::/10", "ff00::/8")

_LAST_PORT: Final = 65535
_LAST_VLAN: Final = 4094
_LEAST_RATE: Final = 8_000
_MOST_RATE: Final = 100_000_000_000
_RATES: Final = {"": 1, "bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}

_NETWORK = re.compile(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?")
_RATE = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,6}))?\s*([kmg]?(?:bit)?)", re.IGNORECASE)
_PORT = re.compile(r"[0-9]{1,5}")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE | re.ASCII)


class NetworkSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A network's shape.

    ``ipv4`` is its subnet (``10.77.0.0/24``), ``ipv6`` its unique local /64; a bridged network has neither: its addresses
    are the LAN's. ``parent`` is the host's bridge or network card that a bridged network is on, ``vlan`` the tag there.
    ``isolated``: no machine of the network sees another.
    """

    mode: Mode
    ipv4: str | None = None
    ipv6: str | None = None
    parent: str | None = None
    vlan: int | None = None
    isolated: bool = False


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a firewall. ``ingress`` is what reaches the machine, ``egress`` what it sends; of both only who began counts.

    ``peer`` is ``any``, an address, a subnet, a domain (which means the names below it too; egress only), or
    ``machine:NAME``: whoever is called so and on the same network. ``ports`` are the destination's: ``80`` or ``8000-8010``.
    """

    action: Action
    direction: Direction
    peer: str = "any"
    protocol: Protocol = "any"
    ports: str = ""


class Firewall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A machine's firewall: the first rule that fits decides; where none fits, the profile does (which is about egress)."""

    profile: Profile = "open"
    isolated: bool = False
    rules: tuple[Rule, ...] = ()


class Rates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a card may send (``up``) and receive (``down``), in bits per second; 0 is without limit."""

    up: int = 0
    down: int = 0


class Publish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A port of the host (``address`` and ``host_port``) that leads to one of a machine."""

    host_port: int
    guest_port: int
    address: str = LOOPBACK
    protocol: Transport = "tcp"


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a guest that cannot be renumbered goes on taking for its own: ``address`` with its prefix, ``gateway``, and the
    hardware addresses of its card and of that gateway."""

    address: str
    gateway: str
    mac: str
    gateway_mac: str


class Nic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A machine's network card. ``key`` is 8 hex digits, unlike any other card's; ``network`` is the network's id.

    ``fixed``: its address was asked for, not chosen by us. ``up``: whether its link is. ``slot``: its place on the board.
    ``inner``: what the guest believes instead, when it was forked and could not be told.
    """

    key: str
    network: str
    mac: str
    ipv4: str | None = None
    ipv6: str | None = None
    fixed: bool = False
    up: bool = True
    rates: Rates = Rates()
    slot: int = 0
    inner: Inner | None = None


def check_network_name(name: str) -> str:
    """``name`` itself when it can be a network's. Raises UsageError (``bad_name``)."""
    if _NETWORK.fullmatch(name) is None or name == "none":
        raise UsageError(
            f"'{_shown(name)}' cannot be a network's name",
            code="bad_name",
            hint="use 1 to 32 lower-case letters, digits and '-', beginning with a letter and not ending with '-'",
        )
    return name


def check_network(spec: NetworkSpec) -> NetworkSpec:
    """``spec`` itself when it makes sense, whatever the host has. Raises UsageError (``bad_network``, ``bad_address``)."""
    if spec.mode == "bridge":
        if not spec.parent:
            raise _bad_network(
                "a bridged network needs a bridge or network card of the host", "name it with --parent, e.g. --parent eth0"
            )
        if spec.ipv4 or spec.ipv6:
            raise _bad_network("a bridged network has the addresses of the LAN it is on", "leave the subnet out")
        if spec.vlan is not None and not 1 <= spec.vlan <= _LAST_VLAN:
            raise _bad_network(f"{spec.vlan} is no VLAN tag", f"ask for 1 to {_LAST_VLAN}")
        return spec
    if spec.parent or spec.vlan is not None:
        raise _bad_network(f"a {spec.mode} network is on no card of the host", "leave parent and VLAN out, or use --mode bridge")
    if spec.ipv4 is None:
        raise _bad_network(f"a {spec.mode} network needs a subnet", "such as 10.77.0.0/24")
    _check_ipv4_subnet(spec.ipv4)
    if spec.ipv6 is not None:
        _check_ipv6_subnet(spec.ipv6)
    return spec


def _check_ipv4_subnet(text: str) -> None:
    from ipaddress import IPv4Network

    try:
        subnet = IPv4Network(text)
    except ValueError as cause:
        raise _bad_network(f"'{_shown(text)}' is no IPv4 subnet: {cause}", "write it like 10.77.0.0/24") from None
    if not 8 <= subnet.prefixlen <= 29:
        raise _bad_network(f"a subnet /{subnet.prefixlen} is not possible", "ask for /8 to /29")
    if subnet.is_loopback or subnet.is_multicast or subnet.is_link_local or subnet.is_unspecified or subnet.is_reserved:
        raise _bad_network(f"machines cannot have addresses of {subnet}", "use a private subnet, such as 10.77.0.0/24")


def _check_ipv6_subnet(text: str) -> None:
    from ipaddress import IPv6Network

    try:
        subnet = IPv6Network(text)
    except ValueError as cause:
        raise _bad_network(f"'{_shown(text)}' is no IPv6 subnet: {cause}", "write it like fd12:3456:789a:1::/64") from None
    if subnet.prefixlen != 64 or not subnet.subnet_of(IPv6Network("fc00::/7")):
        raise _bad_network(f"{subnet} is no unique local /64", "use one of fd00::/8, such as fd12:3456:789a:1::/64")


def _bad_network(message: str, hint: str) -> UsageError:
    return UsageError(message, code="bad_network", hint=hint)


@functools.lru_cache(1024)
def peer_kind(peer: str) -> PeerKind:
    """What kind of peer a rule's ``peer`` names. Raises UsageError (``bad_rule``) when it is none."""
    from ipaddress import ip_network

    if peer == "any":
        return "any"
    if peer.startswith(MACHINE_PEER):
        from insula.model.names import check_machine_name

        check_machine_name(peer.removeprefix(MACHINE_PEER))
        return "machine"
    try:
        ip_network(peer)
        return "addresses"
    except ValueError as cause:
        if "has host bits set" in str(cause):
            raise _bad_rule(f"'{_shown(peer)}' is no subnet: {cause}") from None
    labels = peer.removesuffix(".").split(".")
    if len(peer) <= 253 and all(_LABEL.fullmatch(label) for label in labels) and not labels[-1].isdigit():
        return "domain"
    raise _bad_rule(f"'{_shown(peer)}' is no address, subnet, domain or machine")


def parse_rule(text: str) -> Rule:
    """A rule from ``ACTION to|from PEER [PROTOCOL] [PORTS]``, as in ``allow to example.org tcp 443`` or ``deny from any``.

    Raises UsageError (``bad_rule``) saying which part cannot be.
    """
    words = text.split()
    if len(words) < 3 or words[0] not in ("allow", "deny") or words[1] not in ("to", "from"):
        raise _bad_rule(f"'{_shown(text)}' is no rule")
    action: Action = "allow" if words[0] == "allow" else "deny"
    direction: Direction = "egress" if words[1] == "to" else "ingress"
    peer, rest, protocol = words[2], words[3:], "any"
    if rest and rest[0] in ("any", "tcp", "udp", "icmp"):
        protocol = rest.pop(0)
    ports = rest.pop(0) if rest else ""
    if rest:
        raise _bad_rule(f"'{_shown(rest[0])}' is more than a rule can hold")
    named: dict[str, Protocol] = {"any": "any", "tcp": "tcp", "udp": "udp", "icmp": "icmp"}
    return check_rule(Rule(action, direction, peer, named[protocol], ports))


def check_rule(rule: Rule) -> Rule:
    """``rule`` itself when it makes sense. Raises UsageError (``bad_rule``)."""
    if peer_kind(rule.peer) == "domain":
        if rule.direction == "ingress":
            raise _bad_rule("who sends to a machine is known by address only, not by domain")
        if rule.peer.lower().rstrip(".").endswith(".insula"):
            raise _bad_rule(f"'{_shown(rule.peer)}' is a machine, and named as in machine:web")
    if rule.ports:
        if rule.protocol == "icmp":
            raise _bad_rule("icmp has no ports")
        parse_ports(rule.ports)
    return rule


def check_firewall(spec: NetworkSpec, firewall: Firewall) -> Firewall:
    """``firewall`` itself when all of it can hold on a network of this shape. Raises UsageError (``bad_rule``)."""
    for rule in firewall.rules:
        if peer_kind(check_rule(rule).peer) == "domain" and spec.mode == "bridge":
            raise _bad_rule(f"'{_shown(rule.peer)}' cannot be watched on a bridged network: there the LAN's name server answers")
    return firewall


def format_rule(rule: Rule) -> str:
    """The text that `parse_rule` reads as ``rule``."""
    words = [rule.action, "to" if rule.direction == "egress" else "from", rule.peer]
    if rule.protocol != "any":
        words.append(rule.protocol)
    return " ".join([*words, rule.ports] if rule.ports else words)


def parse_ports(text: str) -> tuple[int, int]:
    """First and last of ``80`` or ``8000-8010``. Raises UsageError (``bad_rule``)."""
    first, dash, last = text.partition("-")
    ends = (first, last if dash else first)
    if not all(_PORT.fullmatch(end) for end in ends) or not 1 <= int(ends[0]) <= int(ends[1]) <= _LAST_PORT:
        raise _bad_rule(f"'{_shown(text)}' is no port and no range of ports")
    return int(ends[0]), int(ends[1])


def _bad_rule(message: str) -> UsageError:
    return UsageError(
        message,
        code="bad_rule",
        hint="write it like 'allow to example.org tcp 443', 'deny to 10.0.0.0/8' or 'allow from machine:web tcp 5432'",
    )


def parse_publish(text: str) -> Publish:
    """``[ADDR:]HOSTPORT:GUESTPORT[/udp]``; an IPv6 address stands in brackets. Raises UsageError (``bad_port``)."""
    ports, slash, protocol = text.partition("/")
    rest, _, guest = ports.rpartition(":")
    address, colon, host = rest.rpartition(":")
    if not rest or (slash and protocol not in ("tcp", "udp")) or (colon and not address):
        raise _bad_port(text)
    if not all(_PORT.fullmatch(port) and 1 <= int(port) <= _LAST_PORT for port in (host, guest)):
        raise _bad_port(text)
    transport: Transport = "udp" if protocol == "udp" else "tcp"
    return Publish(int(host), int(guest), _listening(address, text) if address else LOOPBACK, transport)


def _listening(address: str, text: str) -> str:
    from ipaddress import IPv4Address, IPv6Address

    try:
        if address.startswith("[") and address.endswith("]"):
            return str(IPv6Address(address[1:-1]))
        return str(IPv4Address(address))
    except ValueError:
        raise _bad_port(text) from None


def clash(one: Publish, other: Publish) -> bool:
    """Whether both cannot be listened on at once: the same port, at the same address or at all addresses of one kind."""
    if (one.host_port, one.protocol) != (other.host_port, other.protocol) or (":" in one.address) != (":" in other.address):
        return False
    return one.address == other.address or not {one.address, other.address}.isdisjoint(_EVERYWHERE)


def format_publish(publish: Publish) -> str:
    """The text that `parse_publish` reads as ``publish``."""
    address = f"[{publish.address}]" if ":" in publish.address else publish.address
    return f"{address}:{publish.host_port}:{publish.guest_port}" + ("/udp" if publish.protocol == "udp" else "")


def _bad_port(text: str) -> UsageError:
    return UsageError(
        f"'{_shown(text)}' names no ports to publish",
        code="bad_port",
        hint="write it like 8080:80, 0.0.0.0:8080:80, [::1]:8080:80 or 5353:53/udp",
    )


def parse_rate(text: str) -> int:
    """Bits per second for ``50mbit``, ``1.5gbit``, ``300k``; 0 for ``0`` or ``unlimited``. Raises UsageError (``bad_rate``)."""
    if text.strip() in ("0", "unlimited"):
        return 0
    match = _RATE.fullmatch(text.strip())
    hint = "write it like 50mbit or 1.5gbit, or 'unlimited'"
    if match is None:
        raise UsageError(f"'{_shown(text)}' is no rate", code="bad_rate", hint=hint)
    part = match[2] or ""
    unit = match[3].lower()
    scale: int = 10 ** len(part)
    rate = int(match[1] + part) * _RATES[unit if unit.endswith("bit") or not unit else f"{unit}bit"] // scale
    if not _LEAST_RATE <= rate <= _MOST_RATE:
        raise UsageError(f"{format_rate(rate)} is not possible", code="bad_rate", hint="ask for 8kbit to 100gbit")
    return rate


def format_rate(rate: int) -> str:
    """The text that `parse_rate` reads as ``rate`` bits per second."""
    if not rate:
        return "unlimited"
    unit = next(unit for unit in ("gbit", "mbit", "kbit", "bit") if rate % _RATES[unit] == 0)
    return f"{rate // _RATES[unit]}{unit}"


def _shown(text: str) -> str:
    return clean(text, longest=LONGEST_SHOWN)
