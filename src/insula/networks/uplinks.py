"""How a fabric is joined to the world: as root by a pair of links into the host, which forwards and hides; otherwise by pasta."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import msgspec

from insula.errors import HostLacks
from insula.host import links, nft
from insula.host.holder import Holder, Program
from insula.host.process import require_program
from insula.host.together import together
from insula.model.network import NetworkSpec
from insula.networks import naming, plan, rules, switches

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

    Subnet = IPv4Network | IPv6Network

PASTA: Final = "pasta"


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a fabric is joined by; ``uplink`` is None where that is pasta. ``addresses``: the host's own, which its rules name."""

    version: int
    addresses: tuple[str, ...]
    uplink: plan.Uplink | None = None


def choose(home_key: str, *, root: bool) -> State:
    """A plan for a new uplink. Raises HostLacks (``no_free_subnet``)."""
    if not root:
        return State(1, host_addresses(home_key))
    try:
        uplink = plan.choose_uplink(home_key, links.routes(except_link=naming.host_link(home_key)))
    except ValueError as cause:
        raise HostLacks(str(cause), code="no_free_subnet", hint="to see what is taken: ip route") from None
    return State(1, host_addresses(home_key), uplink)


def host_addresses(home_key: str) -> tuple[str, ...]:
    """The host's own addresses, which machines must not reach; without those of our own link, which answer nobody anyway."""
    return tuple(links.addresses(except_link=naming.host_link(home_key)))


def raise_root(home_key: str, state: State, holder: Holder, networks: Iterable[NetworkSpec]) -> None:
    """The host's side as root: links and routes, rules, switches. What is there already is left or made right.

    A network whose subnet is somebody else's by now is offered no way: see `taken`.
    """
    assert state.uplink is not None, "root's uplink is a pair of links"
    made, spaces = list[str](), holder.spaces
    specs = _free(home_key, networks)
    if not links.exists(naming.host_link(home_key)):
        made = plan.host_links(home_key, state.uplink, f"/proc/self/fd/{spaces.net}")
    made += _routes(home_key, state.uplink, specs)
    together(
        lambda: nft.apply(rules.host_rules(home_key, specs, state.uplink)),
        lambda: links.apply("ip", made, pass_fds=spaces.descriptors()),
    )
    switches.turn_on()  # the last; and the other end of our link is still down


def offer(home_key: str, state: State, spec: NetworkSpec, others: Iterable[NetworkSpec]) -> None:
    """As root: the route of a network that comes, and rules of the host for it and ``others``, which are there."""
    if state.uplink is not None:
        lines = plan.host_routes(home_key, state.uplink, spec)
        commands = rules.host_rules(home_key, [spec, *_free(home_key, others)], state.uplink)
        together(lambda: links.apply("ip", lines), lambda: nft.apply(commands))


def refuse_taken(home_key: str, state: State, spec: NetworkSpec) -> None:
    """Raises HostLacks (``subnet_taken``) when no machine can be put on a network, as `taken` says."""
    if state.uplink is not None and (other := _clash(_others(home_key), spec)) is not None:
        raise HostLacks(
            f"this host sends {other} elsewhere, and the network has {spec.ipv4 if other.version == 4 else spec.ipv6}",
            code="subnet_taken",
            hint=f"to see who has it: ip route show {other}; or use another network: insula network create NAME",
        )


def taken(home_key: str, spec: NetworkSpec) -> str:
    """The subnet that the host sends elsewhere by now, though machines of a network have addresses of it; empty if none is."""
    return str(_clash(_others(home_key), spec) or "")


def _free(home_key: str, networks: Iterable[NetworkSpec]) -> list[NetworkSpec]:
    """The networks whose subnets are nobody else's."""
    there = _others(home_key)
    return [spec for spec in networks if _clash(there, spec) is None]


def _others(home_key: str) -> list[Subnet]:
    """What the host sends elsewhere than to us."""
    from ipaddress import ip_network

    return [ip_network(each) for each in links.routes(except_link=naming.host_link(home_key))]


def _clash(there: Iterable[Subnet], spec: NetworkSpec) -> Subnet | None:
    """Pure: which of the subnets ``there`` takes packets for a network's machines, or some of them."""
    from ipaddress import ip_network

    if spec.mode != "nat":
        return None
    subnets = [ip_network(each) for each in (spec.ipv4, spec.ipv6) if each]
    for other in there:
        for subnet in subnets:
            # A wider one, such as a VPN's, leaves ours alone.
            if other.version == subnet.version and other.prefixlen >= subnet.prefixlen and other.overlaps(subnet):
                return other
    return None


def _routes(home_key: str, uplink: plan.Uplink, networks: Iterable[NetworkSpec]) -> list[str]:
    return [line for spec in networks for line in plan.host_routes(home_key, uplink, spec)]


def withdraw(home_key: str, state: State, spec: NetworkSpec, others: Iterable[NetworkSpec]) -> None:
    """As root: what `offer` did for one network, undone."""
    if state.uplink is not None:
        gone = [line.replace("route replace", "route delete") for line in plan.host_routes(home_key, state.uplink, spec)]
        links.apply("ip", gone, tolerated=links.GONE)
        nft.apply(rules.host_rules(home_key, list(others), state.uplink))


def lower_root(home_key: str) -> None:
    """As root: the host as it was before `raise_root`, but for what other homes' fabrics still need."""
    if links.exists(naming.host_link(home_key)):
        links.apply("ip", [f"link delete dev {naming.host_link(home_key)}"], tolerated=links.GONE)
    nft.apply(rules.drop_host_rules(home_key))
    switches.turn_back()


def start_pasta(home_key: str, holder: Holder, log: int) -> None:
    """Without root: packets of the fabric become sockets of an ordinary process in the host's network.

    Does not wait until they do. Raises HostLacks (``program_missing``, ``fabric_refused``).
    """
    holder.start(PASTA, Program(tuple(pasta_argv(require_program("pasta"), home_key, holder.pid)), outside=True), log)


def pasta_argv(program: str, home_key: str, inside: int) -> list[str]:
    """Pure: the command; ``inside`` is the pid of a process in the fabric. Understood by pasta of 2023-03 and later."""
    addresses = plan.choose_uplink(home_key, [])  # nobody outside sees them
    words = [program, "--foreground", "--quiet", "--stderr", "--config-net", "--no-netns-quit", "--ns-ifname", naming.UPLINK]
    words += ["--address", addresses.inner4, "--netmask", "30", "--gateway", addresses.host4]
    # By default the gateway's address is the host's loopback: machines must not reach what listens only there.
    words += ["--no-map-gw", "--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none"]
    return [*words, "--userns", f"/proc/{inside}/ns/user", "--netns", f"/proc/{inside}/ns/net"]


def world_is_there() -> bool:
    """Whether this host itself has a way to everywhere."""
    return any(map(links.has_default_route, (socket.AF_INET, socket.AF_INET6)))
