"""What the fabric is to look like: links and rates, as batches for ip(8) and tc(8). Pure: it follows from what is wanted alone.

All lines may be run again over what is there already (`link add` is then refused with "File exists", which is no error), but
those that make a pair of links (`veth`), which say so.
Rules are in `rules`, name service in `dns`, one-machine segments in `segments`.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from insula.model.network import Firewall, NetworkSpec, Nic
from insula.networks import naming


class Segment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A one-machine network for a guest that cannot be renumbered: it keeps ``inner``, its gateway stays ``gateway``.

    ``inner`` with the length of its subnet, as in ``10.0.2.15/24``; ``mac`` is the guest's card's, as it always was, and
    ``gateway_mac`` what the guest remembers of its gateway. The card's own addresses are those that others see it by.
    """

    inner: str
    gateway: str
    mac: str
    gateway_mac: str


class Attached(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A card that hangs in a network, and everything that its links, rules and names follow from.

    ``machine`` is the machine's name, ``machine_id`` what stays when it is renamed.
    """

    nic: Nic
    machine: str
    machine_id: str
    network: NetworkSpec
    firewall: Firewall = Firewall()
    segment: Segment | None = None


class Uplink(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The way between the fabric and the host as root: addresses of both ends, of one /30 (IPv4) and one /126 (IPv6)."""

    host4: str
    inner4: str
    host6: str
    inner6: str


# The first where there is room: with some VPNs all of a private range is elsewhere.
_UPLINKS = ("10.213.0.0/16", "172.23.0.0/16", "192.168.213.0/24")


def choose_uplink(home: str, taken: Iterable[str]) -> Uplink:
    """Addresses for a home's uplink that touch none of the subnets ``taken`` (those of the host's routes); where to look first
    follows from the home's key, so that a rebuild mostly finds the same. Raises ValueError when all are taken."""
    from ipaddress import IPv4Network, IPv6Address, ip_network

    used = [each for each in map(ip_network, taken) if isinstance(each, IPv4Network) and each.prefixlen > 0]
    for room in map(IPv4Network, _UPLINKS):
        if any(room.subnet_of(each) for each in used):
            continue
        count = room.num_addresses // 4
        begin = int(home, 16) % count
        for step in range(count):
            small = IPv4Network((int(room[(begin + step) % count * 4]), 30))
            if not any(small.overlaps(each) for each in used):
                low = int(IPv6Address(f"fd1d:{home[:4]}:{home[4:]}:ffff::"))
                return Uplink(str(small[1]), str(small[2]), str(IPv6Address(low + 1)), str(IPv6Address(low + 2)))
    raise ValueError(f"no free subnet is left in {', '.join(_UPLINKS)}")


def host_links(home: str, uplink: Uplink, netns: str) -> list[str]:
    """On the host, as root, when it is not there yet: the pair of links into the fabric, whose namespace is at path ``netns``."""
    link = naming.host_link(home)
    return [
        f"link add name {link} type veth peer name {naming.UPLINK} netns {netns}",
        f"link set dev {link} addrgenmode none",
        f"address replace {uplink.host4}/30 dev {link}",
        f"address replace {uplink.host6}/126 dev {link} nodad",
        f"address replace fe80::1/64 dev {link} nodad",
        f"link set dev {link} up",
    ]


def host_routes(home: str, uplink: Uplink, spec: NetworkSpec) -> list[str]:
    """On the host, as root: the way to a network that the host may reach."""
    link, routes = naming.host_link(home), []
    if spec.mode == "nat" and spec.ipv4:
        routes.append(f"route replace {spec.ipv4} via {uplink.inner4} dev {link}")
    if spec.mode == "nat" and spec.ipv6:
        routes.append(f"route replace {spec.ipv6} via {uplink.inner6} dev {link}")
    return routes


def fabric_links(uplink: Uplink | None) -> list[str]:
    """In the fabric: what is there before any network is. ``uplink`` is None where pasta makes the link."""
    lines = ["link set dev lo up"]
    if uplink is not None:
        lines += [
            f"link set dev {naming.UPLINK} addrgenmode none",
            f"address replace {uplink.inner4}/30 dev {naming.UPLINK}",
            f"address replace {uplink.inner6}/126 dev {naming.UPLINK} nodad",
            f"address replace fe80::2/64 dev {naming.UPLINK} nodad",  # what a router asks its neighbours with
            f"link set dev {naming.UPLINK} up",
            f"route replace default via {uplink.host4} dev {naming.UPLINK}",
            f"route replace ::/0 via {uplink.host6} dev {naming.UPLINK}",
        ]
    return lines


def fabric_sysctls() -> dict[str, str]:
    """In the fabric: what to write to which file below /proc/sys, where that file is (bridge-nf-call is of a module)."""
    return {
        "net/ipv4/ip_forward": "1",
        "net/ipv6/conf/all/forwarding": "1",
        # A bridge answers for its own address only: who asks on one network learns nothing of the others.
        "net/ipv4/conf/all/arp_ignore": "1",
        "net/ipv4/conf/all/send_redirects": "0",
        "net/ipv4/conf/default/send_redirects": "0",
        # What is forbidden is refused at once, also the second time within a second.
        "net/ipv4/icmp_ratelimit": "0",
        "net/ipv6/icmp/ratelimit": "0",
        "net/ipv6/conf/all/accept_ra": "0",
        "net/ipv6/conf/default/accept_ra": "0",
        "net/bridge/bridge-nf-call-iptables": "0",
        "net/bridge/bridge-nf-call-ip6tables": "0",
        "net/bridge/bridge-nf-call-arptables": "0",
    }


def gateway4(spec: NetworkSpec) -> str | None:
    """The bridge's own address: the first of the subnet."""
    from ipaddress import IPv4Network

    return str(IPv4Network(spec.ipv4)[1]) if spec.ipv4 else None


def gateway6(spec: NetworkSpec) -> str | None:
    from ipaddress import IPv6Network

    return str(IPv6Network(spec.ipv6)[1]) if spec.ipv6 else None


def network_links(network: str, spec: NetworkSpec) -> list[str]:
    """In the fabric: a network's bridge. Of a bridged one on a bridge of the host `lan_links` must have been run before."""
    bridge, mac = naming.bridge_name(network), naming.bridge_mac(network)
    lines = [
        f"link add name {bridge} address {mac} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
        f"link set dev {bridge} addrgenmode none",
    ]
    if spec.mode == "bridge":
        port = naming.lan_link(network)
        if spec.vlan is not None:
            lines += [
                f"link set dev {port} addrgenmode none up",
                f"link add link {port} name {naming.lan_vlan_link(network)} type vlan id {spec.vlan}",
            ]
            port = naming.lan_vlan_link(network)
        return [*lines, f"link set dev {port} addrgenmode none master {bridge} up", f"link set dev {bridge} up"]
    lines.append(f"address replace {naming.link_local(mac)}/64 dev {bridge} nodad")
    for gateway, subnet, more in ((gateway4(spec), spec.ipv4, ""), (gateway6(spec), spec.ipv6, " nodad")):
        if gateway and subnet:
            lines.append(f"address replace {gateway}/{subnet.rpartition('/')[2]} dev {bridge}{more}")
    return [*lines, f"link set dev {bridge} up"]


def drop_network_links(network: str) -> list[str]:
    """In the fabric: what ends a network's bridge (and, with its one end, the pair to the LAN); it must be there."""
    return [f"link delete dev {naming.bridge_name(network)}"]


def lan_links(network: str, spec: NetworkSpec, netns: str) -> list[str]:
    """On the host, when the pair is not there yet: a pair of links from the LAN's bridge ``spec.parent`` into the fabric."""
    link = naming.lan_host_link(network)
    return [
        f"link add name {link} type veth peer name {naming.lan_link(network)} netns {netns}",
        f"link set dev {link} addrgenmode none master {spec.parent} up",
    ]


def lan_tags(network: str, spec: NetworkSpec) -> list[str]:
    """For bridge(8), after `lan_links`, where the LAN's bridge filters VLANs: the tag is let through to us."""
    return [f"vlan add dev {naming.lan_host_link(network)} vid {spec.vlan}"]


def macvtap_links(network: str, spec: NetworkSpec, nic: Nic) -> list[str]:
    """On the host, where ``spec.parent`` is a bare card: a machine's own link on it; its descriptor is opened as /dev/tapINDEX.

    The pair machine and host cannot speak to each other this way: the card sends, and does not hear itself.
    """
    parent, link, lines = spec.parent, naming.macvtap_name(nic.key), []
    if spec.vlan is not None:
        parent = naming.lan_vlan_link(network)
        lines += [f"link add link {spec.parent} name {parent} type vlan id {spec.vlan}", f"link set dev {parent} up"]
    made = f"link add link {parent} name {link} address {nic.mac} type macvtap mode bridge"
    return [*lines, made, f"link set dev {link} addrgenmode none up"]


def nic_links(attached: Attached) -> list[str]:
    """In the fabric: hang a card's tap, which is there, into its network; the router forgets whose its addresses were."""
    nic, bridge = attached.nic, naming.bridge_name(attached.nic.network)
    known = [f"neighbour replace {each} lladdr {nic.mac} dev {bridge} nud stale" for each in (nic.ipv4, nic.ipv6) if each]
    return [f"link set dev {naming.tap_name(nic.key)} addrgenmode none master {bridge} up", *known]


def shaping_links(attached: Attached) -> list[str]:
    """In the fabric, before `nic_shaping`: the link that slows down what a card sends, where that is limited."""
    shaper = naming.shaper_name(attached.nic.key)
    return [f"link add name {shaper} type ifb", f"link set dev {shaper} addrgenmode none up"] if attached.nic.rates.up else []


def nic_shaping(attached: Attached) -> list[str]:
    """For tc, in the fabric: a card's rates. A card that never had any needs none of this; with 0 a limit is taken away.

    What a machine receives is slowed on its tap; what it sends on a link it is led through, as a tap has no queue for that way.
    """
    tap, shaper, rates = naming.tap_name(attached.nic.key), naming.shaper_name(attached.nic.key), attached.nic.rates
    # The plain queue of a link, which replaces whatever limit was there.
    lines = [f"qdisc replace dev {tap} root {_bucket(rates.down) if rates.down else 'pfifo_fast'}"]
    lines.append(f"qdisc replace dev {tap} handle ffff: ingress")
    if not rates.up:
        return [*lines, f"qdisc delete dev {tap} ingress"]
    led = f"match u32 0 0 action mirred egress redirect dev {shaper}"
    return [
        f"qdisc replace dev {shaper} root {_bucket(rates.up)}",
        *lines,
        f"filter replace dev {tap} parent ffff: protocol all prio 1 handle 800::800 u32 {led}",
    ]


def _bucket(rate: int) -> str:
    """A token bucket that holds a hundredth of a second of the rate, and at least one of the large packets that cards make."""
    return f"tbf rate {rate}bit burst {max(65536, rate // 800)} latency 50ms"


def drop_shaping_links(key: str) -> list[str]:
    """In the fabric, after the card's tap is gone or unlimited: the link of `shaping_links`, which must be there."""
    return [f"link delete dev {naming.shaper_name(key)}"]
