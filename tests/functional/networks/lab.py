"""A world in namespaces, to load plans into: an outside, a host, a fabric, and guests at the ends of pairs of links.

All of it is made by root, or by an ordinary user in a user namespace; both then do the same. It ends with its processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import pytest

from insula.model.addresses import slaac_address
from insula.model.network import Firewall, NetworkSpec, Nic, Profile, parse_rule
from insula.networks import dns, naming, plan, rules, segments
from insula.networks.plan import Attached
from tests.framework.ordinary import AS_A_USER

_CODE = (Path(__file__).parent / "node.py").read_text()
_PYTHON = ["/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "python3", "-c", _CODE]

HOME = "0123abcd"
OUTSIDE4, OUTSIDE6 = "203.0.113.9", "2001:db8:9::9"  # an address nobody calls private, and one that is of the host's LAN
LAN4 = "192.168.50.9"
HOST4, HOST6, HOST_LAN4 = "203.0.113.1", "2001:db8:9::1", "192.168.50.1"


class Failed(AssertionError):
    pass


class Node:
    """A namespace, by the process that does in it what it is told: ``node.ping("10.0.0.1")`` calls `node.ping` there."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self._into: IO[bytes] = process.stdin
        self._out: IO[bytes] = process.stdout
        self.pid = int(self._out.readline())

    def __getattr__(self, what: str) -> Any:
        def do(*words: Any, **named: Any) -> Any:
            self._into.write(json.dumps([what, words, named]).encode() + b"\n")
            self._into.flush()
            done, reply = json.loads(self._out.readline())
            if not done:
                raise Failed(f"{what}{words}: {reply}")
            return reply

        return do

    @property
    def path(self) -> str:
        return f"/proc/{self.pid}/ns/net"

    def batch(self, program: str, lines: list[str], tolerated: str = "") -> None:
        """All lines are tried; a refusal is no error if it says what is ``tolerated``."""
        data = "".join(f"{line}\n" for line in lines)
        _, _, err = self.run([program, "-force", "-batch", "-"], data)
        words = [line for line in err.splitlines() if not line.startswith("Command failed")]
        if any(not tolerated or tolerated not in line for line in words):
            raise Failed(f"{program}: {err}\n{data}")

    def check(self, argv: list[str], data: str = "") -> str:
        status, out, err = self.run(argv, data)
        if status:
            raise Failed(f"{argv}: {err or out}\n{data}")
        return str(out)

    def nft(self, commands: list[str]) -> None:
        self.check(["nft", "-f", "-"], "".join(f"{command}\n" for command in commands))

    def ruleset(self) -> list[Any]:
        """All rules, without the numbers that the kernel gives to them, and what they have counted and learned."""
        listing = json.loads(self.check(["nft", "-j", "list", "ruleset"]))["nftables"]
        for each in listing:
            if {"asked", "askers", "begun", "called", "claimers"} & {each.get("set", {}).get("name", "").partition("_")[0]}:
                each["set"].pop("elem", None)
        stripped: list[Any] = _without(listing[1:], ("handle", "expires", "packets", "bytes"))
        return stripped

    def counter(self, family: str, name: str) -> int:
        """The packets a counter counted."""
        out = json.loads(self.check(["nft", "-j", "list", "counter", family, naming.TABLE, name]))
        return int(out["nftables"][1]["counter"]["packets"])

    def close(self) -> None:
        self._into.close()
        self._process.wait()
        self._out.close()


def _without(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _without(each, names) for key, each in value.items() if key not in names}
    return [_without(each, names) for each in value] if isinstance(value, list) else value


class Guest:
    """A machine's card, and the namespace that stands for the machine."""

    def __init__(self, node: Node, attached: Attached) -> None:
        self.node, self.attached = node, attached

    @property
    def key(self) -> str:
        return self.attached.nic.key

    @property
    def mac(self) -> str:
        return self.attached.nic.mac

    @property
    def ipv4(self) -> str:
        return self.attached.nic.ipv4 or ""

    @property
    def ipv6(self) -> str:
        return self.attached.nic.ipv6 or ""


class Lab:
    """The world. Its host, outside and fabric are there, and joined; networks and guests are added."""

    def __init__(self, *, ordinary: bool, stack: contextlib.ExitStack) -> None:
        self._prefix, self._stack = [*AS_A_USER] if ordinary else [], stack
        self.ordinary = ordinary
        own = ["--user", "--map-root-user"] if ordinary else []
        self.host = self._node(["unshare", *own, "--net", "--", *_PYTHON])
        entering = ["nsenter", f"--user=/proc/{self.host.pid}/ns/user", "--preserve-credentials", "--"] if ordinary else []
        self._inside = [*entering, "unshare", "--net", "--", *_PYTHON]
        self.outside, self.fabric = self._node(self._inside), self._node(self._inside)
        self.networks: dict[str, NetworkSpec] = {}
        self.guests: list[Guest] = []
        self.servers: dict[str, tuple[int, str]] = {}
        self.uplink = plan.choose_uplink(HOME, [])
        self._join_outside()
        self._raise_fabric()

    def _node(self, argv: list[str]) -> Node:
        process = subprocess.Popen([*self._prefix, *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/")
        node = Node(process)
        self._stack.callback(node.close)
        return node

    def add_node(self) -> Node:
        """One more namespace, joined to nothing."""
        return self._node(self._inside)

    def _join_outside(self) -> None:
        self.host.batch(
            "ip",
            [
                "link set lo up",
                f"link add wan0 type veth peer name eth0 netns {self.outside.path}",
                f"address add {HOST4}/24 dev wan0",
                f"address add {HOST_LAN4}/24 dev wan0",
                f"address add {HOST6}/64 dev wan0 nodad",
                "link set wan0 up",
            ],
        )
        addresses = [
            f"address add {OUTSIDE4}/24 dev eth0",
            f"address add {LAN4}/24 dev eth0",
            f"address add {OUTSIDE6}/64 dev eth0 nodad",
        ]
        # Had a stranger on the LAN a route to our networks it could try to use it.
        routes = [f"route add 10.0.0.0/8 via {HOST4}", f"route add fd00::/8 via {HOST6}"]
        self.outside.batch("ip", ["link set lo up", "link set eth0 up", *addresses, *routes])
        for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
            self.host.write(f"/proc/sys/{name}", "1")

    def _raise_fabric(self) -> None:
        self.host.batch("ip", plan.host_links(HOME, self.uplink, self.fabric.path))
        for name, value in plan.fabric_sysctls().items():
            self.fabric.write(f"/proc/sys/{name}", value)
        self.fabric.batch("ip", plan.fabric_links(self.uplink))
        self.fabric.nft(self.base())
        self.host.nft(rules.host_rules(HOME, []))

    def base(self) -> list[str]:
        return rules.base_rules(self.uplink, [HOST4, HOST6, HOST_LAN4, self.uplink.host4, self.uplink.host6])

    def network(self, network: str, spec: NetworkSpec) -> None:
        self.networks[network] = spec
        self.fabric.batch("ip", plan.network_links(network, spec))
        self.fabric.nft(rules.network_rules(network, spec))
        self.host.batch("ip", plan.host_routes(HOME, self.uplink, spec))
        self.host.nft(rules.host_rules(HOME, self.networks.values()))

    def guest(
        self,
        name: str,
        network: str,
        number: int,
        firewall: Firewall | None = None,
        *,
        configured: bool = True,
        between: str = "",
    ) -> Guest:
        """A guest that has its addresses already, or one that has none yet; or one with a segment ``between`` (its path), which
        is to be laid by who asked."""
        spec, mac = self.networks[network], f"52:54:00:00:{int(network[:2], 16):02x}:{number:02x}"
        ipv4 = spec.ipv4.rpartition(".")[0] + f".{number}" if spec.ipv4 else None
        nic = Nic(f"{network[:4]}{number:04x}", network, mac, ipv4, slaac_address(spec.ipv6, mac) if spec.ipv6 else None)
        attached = Attached(nic, name, f"id-{name}", spec, firewall or Firewall())
        guest = Guest(self._node(self._inside), attached)
        tap = naming.tap_name(nic.key)
        if between:
            self.fabric.batch("ip", segments.pair_links(attached, between))
        else:
            self.fabric.batch("ip", [f"link add {tap} type veth peer name eth0 netns {guest.node.path}"])
        self.load(attached)
        self.fabric.batch("ip", plan.nic_links(attached))
        if not between:
            up = _configured(spec, nic) if configured else ["link set eth0 up"]
            guest.node.batch("ip", ["link set lo up", f"link set eth0 address {mac}", *up])
        self.guests.append(guest)
        return guest

    def load(self, attached: Attached, former: Attached | None = None) -> None:
        self.fabric.nft(rules.nic_rules(attached, former))

    def firewall(self, guest: Guest, profile: Profile, *texts: str, isolated: bool = False) -> None:
        """Another firewall for a guest, live."""
        firewall = Firewall(profile, isolated, tuple(map(parse_rule, texts)))
        attached = msgspec.structs.replace(guest.attached, firewall=firewall)
        self.load(attached, guest.attached)
        guest.attached = attached

    def names(self, network: str, resolver: str = "") -> None:
        """Start a network's dnsmasq, or start it anew, and wait until it answers."""
        if network in self.servers:
            number, folder = self.servers.pop(network)
            self.fabric.end(number)
        else:
            folder = self.fabric.folder()
        spec, cards = self.networks[network], [guest.attached for guest in self.guests if guest.attached.nic.network == network]
        watched = dns.watched_domains(cards)
        config = dns.dnsmasq_config(network, spec, folder, [resolver] if resolver else [], watched)
        self.fabric.write(f"{folder}/{dns.CONFIG}", config)
        for part in (dns.CARDS, dns.NAMES):
            self.fabric.write(f"{folder}/{part}/none", "")
        for attached in cards:
            self.add_names(folder, attached)
        self.servers[network] = self.fabric.spawn(dns.dnsmasq_argv(folder)), folder
        self._stack.callback(self.fabric.run, ["rm", "-rf", folder])
        await_names(self.fabric, plan.gateway4(spec) or "")

    def add_names(self, folder: str, attached: Attached) -> None:
        self.fabric.write(f"{folder}/{dns.CARDS}/{attached.nic.key}", dns.card_file(attached))
        self.fabric.write(f"{folder}/{dns.NAMES}/{attached.nic.key}", dns.names_file(attached))


def await_names(node: Node, server: str) -> None:
    """Until a name server is there; an ICMP refusal comes at once, so this asks again and again for an instant only."""
    for _ in range(100_000):
        if node.lookup(server, "nobody.insula", patience=1.0)[:1] not in (["(Connection refused)"], ["(silent)"]):
            return
        os.sched_yield()
    raise Failed(f"no name server came at {server}")


def _configured(spec: NetworkSpec, nic: Nic) -> list[str]:
    lines = ["link set eth0 up"]
    if nic.ipv4 and spec.ipv4:
        lines += [
            f"address add {nic.ipv4}/{spec.ipv4.rpartition('/')[2]} dev eth0",
            f"route add default via {plan.gateway4(spec)}",
        ]
    if nic.ipv6:
        lines += [f"address add {nic.ipv6}/64 dev eth0 nodad", f"route add ::/0 via {plan.gateway6(spec)}"]
    return lines


# Whose a lab is: either is made from root.
ROOT_OR_NOT = [
    pytest.param("root", marks=pytest.mark.root),
    pytest.param("user", marks=[pytest.mark.root, pytest.mark.full]),
]


@contextlib.contextmanager
def lab(*, ordinary: bool) -> Iterator[Lab]:
    with contextlib.ExitStack() as stack:
        yield Lab(ordinary=ordinary, stack=stack)
