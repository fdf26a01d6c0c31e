"""What can be asked of networks, ports, firewalls and cards: one frozen type per verb, as in requests.py."""

from __future__ import annotations

from insula.model.network import Mode, Profile, Publish, Rule
from insula.model.requests import Request


class CreateNetwork(Request, frozen=True):
    """Make a network. Empty subnets of a private or NAT network are chosen: such as nobody here has."""

    name: str
    mode: Mode = "nat"
    ipv4: str = ""
    ipv6: str = ""
    parent: str = ""
    vlan: int | None = None
    isolated: bool = False


class ListNetworks(Request, frozen=True):
    pass


class ShowNetwork(Request, frozen=True):
    name: str


class DeleteNetwork(Request, frozen=True):
    name: str


class RepairNetworks(Request, frozen=True):
    """Make all links, rules and helpers be again what the running machines need."""


class AttachNetwork(Request, frozen=True):
    """Give the machine ``name`` a card on ``network``, at once if it runs; an empty ``address`` asks for any that is free."""

    network: str
    name: str
    address: str = ""


class DetachNetwork(Request, frozen=True):
    """Take from the machine ``name`` its card on ``network``."""

    network: str
    name: str


class SetLink(Request, frozen=True):
    """Plug or pull the cable of the machine's card on ``network`` (empty: of all its cards)."""

    name: str
    up: bool
    network: str = ""


class LimitNetwork(Request, frozen=True):
    """What the machine's card on ``network`` (empty: each of its cards) may send and receive, in bits per second; 0 is without
    limit, None leaves it."""

    name: str
    network: str = ""
    up: int | None = None
    down: int | None = None


class PublishPorts(Request, frozen=True):
    """Have ports of the host lead to the machine, now and whenever it runs."""

    name: str
    ports: tuple[Publish, ...]


class UnpublishPorts(Request, frozen=True):
    """Have them lead there no more; none named: all of the machine."""

    name: str
    ports: tuple[Publish, ...] = ()


class ListPorts(Request, frozen=True):
    """The published ports of a machine, or of all when ``name`` is empty."""

    name: str = ""


class SetFirewall(Request, frozen=True):
    """Change a machine's firewall, at once if it runs: ``clear`` first, then the profile and isolation that are given, then take
    ``remove`` out, then put ``add`` behind the rules there are."""

    name: str
    profile: Profile | None = None
    isolated: bool | None = None
    clear: bool = False
    remove: tuple[Rule, ...] = ()
    add: tuple[Rule, ...] = ()


class ShowFirewall(Request, frozen=True):
    name: str


class CaptureTraffic(Request, frozen=True):
    """What passes a machine's card on ``network`` (empty: its first), as a pcap stream, until the caller has enough."""

    name: str
    network: str = ""


class ShowTraffic(Request, frozen=True):
    """What passed the cards of machines; none named: of all that run."""

    names: tuple[str, ...] = ()
