"""How a fabric is joined to the world: as root by a pair of links into the host, which forwards and hides; otherwise by pasta.

As root two switches of the host (`_FORWARDING`) must be on. What they were before is remembered, and they are set back
when the fabric ends, unless somebody else has changed them meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from insula.errors import HostLacks
from insula.host import links, nft
from insula.host.holder import Holder, Program
from insula.host.process import require_program
from insula.model.network import NetworkSpec
from insula.networks import naming, plan, rules

PASTA: Final = "pasta"
_FORWARDING: Final = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
_ACCEPT_RA: Final = "accept_ra"


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a fabric is joined by. ``former``: what switches below /proc/sys/net were, which we turned.

    ``addresses``: the host's own, which its rules name. ``uplink`` is None where pasta is the uplink.
    """

    version: int
    addresses: tuple[str, ...]
    uplink: plan.Uplink | None = None
    former: dict[str, str] = {}


def choose(home_key: str, *, root: bool) -> State:
    """A plan for a new uplink. Raises HostLacks (``no_free_subnet``)."""
    link = naming.host_link(home_key)
    if not root:
        return State(1, tuple(links.addresses()))
    try:
        uplink = plan.choose_uplink(home_key, links.routes(except_link=link))
    except ValueError as cause:
        raise HostLacks(str(cause), code="no_free_subnet", hint="to see what is taken: ip route") from None
    return State(1, tuple(links.addresses(except_link=link)), uplink, _former())


def _former() -> dict[str, str]:
    """The switches that must be turned, with what they are now."""
    found = {}
    for name in (*_FORWARDING, *_router_switches()):
        with contextlib.suppress(OSError):
            value = (Path("/proc/sys/net") / name).read_text().strip()
            if value != _wanted(name):
                found[name] = value
    return found


def _wanted(name: str) -> str:
    return "2" if name.endswith(_ACCEPT_RA) else "1"


def _router_switches() -> list[str]:
    """A host that forwards IPv6 no longer learns its own way out from routers, unless told that it shall (2)."""
    found = []
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir("/proc/sys/net/ipv6/conf")):
            switch = f"ipv6/conf/{name}/{_ACCEPT_RA}"
            if name not in ("all", "default", "lo") and (Path("/proc/sys/net") / switch).read_text().strip() == "1":
                found.append(switch)
    return found


def raise_root(home_key: str, state: State, holder: Holder, networks: Iterable[NetworkSpec]) -> None:
    """The host's side as root: links and routes, rules, switches. What is there already is left or made right."""
    assert state.uplink is not None, "root's uplink is a pair of links"
    spaces = holder.spaces
    if not links.exists(naming.host_link(home_key)):
        made = plan.host_links(home_key, state.uplink, f"/proc/self/fd/{spaces.net}")
        links.apply("ip", made, pass_fds=spaces.descriptors())
    offer(home_key, state, networks)
    for name in sorted(state.former, reverse=True):  # accept_ra of ipv6/conf/NAME before forwarding: nothing is forgotten
        _turn(name, _wanted(name))


def offer(home_key: str, state: State, networks: Iterable[NetworkSpec]) -> None:
    """As root: routes and rules of the host for the networks that are there."""
    specs = list(networks)
    if state.uplink is not None:
        links.apply("ip", [line for spec in specs for line in plan.host_routes(home_key, state.uplink, spec)])
        nft.apply(rules.host_rules(home_key, specs, state.uplink))


def withdraw(home_key: str, state: State, spec: NetworkSpec, others: Iterable[NetworkSpec]) -> None:
    """As root: what `offer` did for one network, undone."""
    if state.uplink is not None:
        gone = [line.replace("route replace", "route delete") for line in plan.host_routes(home_key, state.uplink, spec)]
        links.apply("ip", gone, tolerated=links.GONE)
        nft.apply(rules.host_rules(home_key, list(others), state.uplink))


def lower_root(home_key: str, state: State) -> None:
    """As root: the host as it was before `raise_root`."""
    if links.exists(naming.host_link(home_key)):
        links.apply("ip", [f"link delete dev {naming.host_link(home_key)}"], tolerated=links.GONE)
    nft.apply(rules.drop_host_rules(home_key))
    for name in sorted(state.former):
        with contextlib.suppress(OSError):
            if (Path("/proc/sys/net") / name).read_text().strip() == _wanted(name):
                _turn(name, state.former[name])


def _turn(name: str, value: str) -> None:
    try:
        (Path("/proc/sys/net") / name).write_text(value)
    except OSError as cause:
        raise HostLacks(
            f"this host does not let us set net/{name}: {cause.strerror}",
            code="no_forwarding",
            hint=f"run: sysctl -w net.{name.replace('/', '.')}={value}",
        ) from None


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


def world_has_ipv6() -> bool:
    """Whether guests that have a way out by IPv6 would get anywhere."""
    return links.has_default_route(socket.AF_INET6)
