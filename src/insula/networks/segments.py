"""A network for one machine, for a guest that cannot be renumbered: it keeps its address, and others see it by another.

A namespace of its own holds the guest's tap and a pair of links to the fabric, whose outer end is an ordinary card of the network
(with the card's key, hardware address and address, and so its guard, firewall and rates). Inside, everything the guest asks its
neighbours for is answered for by the tap, and each address is exchanged for the other on the way. IPv4 only; its IPv6 ends here.

Another machine that has the same address outside as the guest has inside is, to this guest, itself. All of it is pure; lines and
rules may be loaded again, but those of `pair_links`.
"""

from __future__ import annotations

from typing import Final

from insula.networks import naming
from insula.networks.dns import LEASE
from insula.networks.matching import PORTED, shared_sets
from insula.networks.plan import Attached, Segment, gateway4
from insula.networks.terms import ACCEPT, Table, ct, link, match, meta, payload

_INET: Final = Table("inet", naming.TABLE)
_SERVER: Final = "169.254.254.254"  # of DHCP: on no network, so that it can clash with none


def pair_links(attached: Attached, netns: str) -> list[str]:
    """In the fabric, when it is not there yet, instead of a tap: the pair of links into the segment, a namespace at ``netns``."""
    return [f"link add name {naming.tap_name(attached.nic.key)} type veth peer name {naming.UPLINK} netns {netns}"]


def inside_links(attached: Attached) -> list[str]:
    """In the segment, when the pair and the guest's tap (of the same name as the pair's outer end) are there."""
    segment, nic, tap = _segment(attached), attached.nic, naming.tap_name(attached.nic.key)
    length = (attached.network.ipv4 or "").rpartition("/")[2]
    return [
        "link set dev lo up",
        f"link set dev {naming.UPLINK} address {nic.mac} addrgenmode none",
        f"address replace {nic.ipv4}/{length} dev {naming.UPLINK}",
        f"link set dev {naming.UPLINK} up",
        f"route replace default via {gateway4(attached.network)} dev {naming.UPLINK}",
        f"link set dev {tap} address {segment.gateway_mac} addrgenmode none",
        f"address replace {_SERVER}/32 dev {tap}",
        f"link set dev {tap} up",
        f"route replace {_inner(segment)}/32 dev {tap}",
    ]


def inside_sysctls(attached: Attached) -> dict[str, str]:
    """In the segment, after `inside_links`: as `plan.fabric_sysctls`."""
    tap = naming.tap_name(attached.nic.key)
    return {
        "net/ipv4/ip_forward": "1",
        "net/ipv6/conf/all/disable_ipv6": "1",
        # The guest believes its neighbours are on its link: the tap answers for all that there is a way to.
        f"net/ipv4/conf/{tap}/proxy_arp": "1",
        f"net/ipv4/neigh/{tap}/proxy_delay": "0",
        f"net/ipv4/conf/{tap}/send_redirects": "0",
    }


def inside_rules(attached: Attached) -> list[str]:
    """In the segment: all its rules, replaced as a whole."""
    segment, nic = _segment(attached), attached.nic
    inner, outer, gateway = _inner(segment), str(nic.ipv4), gateway4(attached.network)
    guest, world = meta("iifname"), meta("oifname")
    tap, uplink = link(naming.tap_name(nic.key)), link(naming.UPLINK)
    from_guest, to_world = match(guest, tap), match(world, uplink)
    arriving: list[list[str]] = [
        [match(guest, uplink), match(payload("ip", "daddr"), outer), _exchange("dnat", inner)],
        [
            from_guest,
            match(payload("ip", "daddr"), "255.255.255.255", "!="),
            match(payload("udp", "dport"), 67),
            "redirect",
        ],
    ]
    if segment.gateway != gateway:  # what its former router and resolver were is the network's gateway now
        dport = match(payload("th", "dport"), 53)
        arriving.append([from_guest, match(payload("ip", "daddr"), segment.gateway), _exchange("dnat", gateway)])
        arriving.append([from_guest, match(payload("ip", "daddr"), _subnet(segment)), PORTED, dport, _exchange("dnat", gateway)])
    passing: list[list[str]] = [
        [from_guest, to_world, match(payload("ip", "saddr"), inner), ACCEPT],
        [match(guest, uplink), match(world, tap), match(payload("ip", "daddr"), inner), ACCEPT],
    ]
    local: list[list[str]] = [
        [match(ct("state"), "established,related"), ACCEPT],
        [from_guest, match(payload("udp", "dport"), 67), ACCEPT],
    ]
    return [
        _INET.add(),
        _INET.delete(),
        _INET.add(),
        *shared_sets(_INET),
        *_INET.base_chain("arriving", "nat", "prerouting", -100),
        *_INET.rules("arriving", arriving),
        *_INET.base_chain("leaving", "nat", "postrouting", 100),
        *_INET.rules("leaving", [[to_world, match(payload("ip", "saddr"), inner), _exchange("snat", outer)]]),
        *_INET.base_chain("passing", "filter", "forward", 0, "drop"),
        *_INET.rules("passing", passing),
        *_INET.base_chain("local", "filter", "input", 0, "drop"),
        *_INET.rules("local", local),
    ]


def inside_dnsmasq(attached: Attached) -> str:
    """The configuration of the segment's own dnsmasq, started as `dns.dnsmasq_argv`: it renews the guest's lease, no more."""
    from ipaddress import IPv4Interface

    segment, tap = _segment(attached), naming.tap_name(attached.nic.key)
    network = IPv4Interface(segment.inner).network
    lines = [
        f"interface={tap}",
        "except-interface=lo",
        "bind-interfaces",
        "port=0",
        "no-ping",
        "pid-file=",
        "quiet-dhcp",
        "dhcp-authoritative",
        "leasefile-ro",
        f"shared-network={tap},{network.network_address}",
        f"dhcp-range={network.network_address},static,{network.netmask},{LEASE}",
        f"dhcp-host={segment.mac},{_inner(segment)}",
        f"dhcp-option=option:router,{segment.gateway}",
        f"dhcp-option=option:dns-server,{gateway4(attached.network)}",
    ]
    return "\n".join(lines) + "\n"


def _segment(attached: Attached) -> Segment:
    if attached.segment is None or attached.nic.ipv4 is None:
        raise ValueError(f"the card {attached.nic.key} is in no segment")
    return attached.segment


def _inner(segment: Segment) -> str:
    return segment.inner.partition("/")[0]


def _subnet(segment: Segment) -> str:
    from ipaddress import IPv4Interface

    return str(IPv4Interface(segment.inner).network)


def _exchange(way: str, address: str | None) -> str:
    """Destination (``dnat``) or source (``snat``) becomes ``address``."""
    return f"{way} ip to {address}"
