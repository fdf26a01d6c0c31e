"""The commands of the noun *network*, and those for ports, firewalls and traffic."""

from __future__ import annotations

from typing import Any

import click

from insula.cli.common import json_option, perform, quiet_option
from insula.cli.group import Noun
from insula.cli.render import print_json, print_pairs, print_table
from insula.cli.values import Rate, later
from insula.model import network_requests, requests

_NETWORK = click.argument("network", shell_complete=later("networks"))
_MACHINE = click.argument("machine", shell_complete=later("machines"))


@click.group(cls=Noun, epilog="Example: insula network create lab --mode private")
def network() -> None:
    """Networks: who machines can talk to, under which names and addresses."""


@network.command(
    short_help="Make a network.",
    epilog="Examples: insula network create lab --mode private  |  insula network create lan --mode bridge --parent eth0",
)
@click.option(
    "--mode", type=click.Choice(["private", "nat", "bridge"]), default="nat", show_default=True,
    help="private: machines see each other alone; nat: and the outside, through this host; bridge: they are on the host's LAN.",
)  # fmt: skip
@click.option("--subnet", default="", metavar="CIDR", help="IPv4 subnet (default: one that nobody here has).")
@click.option("--subnet6", default="", metavar="CIDR", help="IPv6 subnet, a unique local /64 (default: a random one).")
@click.option("--parent", default="", metavar="LINK", help="The host's bridge or network card that a bridged network is on.")
@click.option("--vlan", type=int, help="VLAN tag on that link.")
@click.option("--isolated", is_flag=True, help="No machine of it sees another.")
@quiet_option
@json_option
@click.argument("name")
def create(name: str, mode: Any, subnet: str, subnet6: str, quiet: bool, as_json: bool, **options: Any) -> None:
    """Make a network."""
    request = network_requests.CreateNetwork(name=name, mode=mode, ipv4=subnet, ipv6=subnet6, **options)
    made = perform(request, quiet or as_json)
    if as_json:
        print_json(made)
    else:
        click.echo(made.name)


@network.command("list", short_help="List networks.", epilog="Example: insula network list")
@json_option
def list_(as_json: bool) -> None:
    """List networks."""
    found = perform(network_requests.ListNetworks())
    if as_json:
        print_json(found)
        return
    rows = ((one.name, one.mode, one.ipv4 or one.parent or "-", one.ipv6 or "-", str(one.machines)) for one in found)
    print_table(("NAME", "MODE", "SUBNET", "SUBNET6", "CARDS"), rows)


@network.command(short_help="Show a network and who hangs on it.", epilog="Example: insula network show nat")
@json_option
@_NETWORK
def show(network: str, as_json: bool) -> None:
    """Show a network and who hangs on it."""
    found = perform(network_requests.ShowNetwork(name=network))
    if as_json:
        print_json(found)
        return
    print_pairs(
        [
            ("name", found.name),
            ("mode", found.mode + (", isolated" if found.isolated else "")),
            ("subnet", ", ".join(subnet for subnet in (found.ipv4, found.ipv6) if subnet)),
            ("on", f"{found.parent}{f', VLAN {found.vlan}' if found.vlan else ''}" if found.parent else ""),
            ("fabric", found.fabric),
            ("resolver", found.resolver),
            *[("blocked", each) for each in found.blocked],
        ]
    )
    for line in _drawing(found):
        click.echo(line)


_BEHIND = {"nat": "the outside, through this host", "private": "nothing else", "bridge": "the LAN"}


def _drawing(found: Any) -> list[str]:
    """The network as a tree: what it leads to, and who hangs on it."""
    lines = ["", f"{_BEHIND[found.mode]}", f"└─ {found.name}"]
    for index, member in enumerate(found.members):
        branch = "└─" if index == len(found.members) - 1 else "├─"
        addresses = ", ".join(member.addresses) or "addresses of the LAN"
        cable = "" if member.up else ", cable pulled"
        running = f"{member.link}, " if member.state not in ("stopped", "suspended") else ""
        lines.append(f"   {branch} {member.machine} ({running}{member.state}{cable}): {addresses}, {member.mac}")
    return lines


@network.command(short_help="Delete a network.", epilog="Example: insula network delete lab")
@quiet_option
@json_option
@_NETWORK
def delete(network: str, quiet: bool, as_json: bool) -> None:
    """Delete a network that no machine is on."""
    gone = perform(network_requests.DeleteNetwork(name=network), quiet or as_json)
    if as_json:
        print_json(gone)
    elif not quiet:
        click.echo(f"{gone.name} deleted")


@network.command(short_help="Make links and rules right again.", epilog="Example: insula network repair")
@quiet_option
@json_option
def repair(quiet: bool, as_json: bool) -> None:
    """Make links, rules and helpers be again what the running machines need. Doing it twice does nothing."""
    mended = perform(network_requests.RepairNetworks(), quiet or as_json)
    if as_json:
        print_json(mended)
    elif not quiet:
        click.echo("\n".join(mended) or "all was in order")


def _on_machine(request: requests.Request, quiet: bool, as_json: bool, done: str) -> None:
    machine = perform(request, quiet or as_json)
    if as_json:
        print_json(machine)
    elif not quiet:
        click.echo(done)


@network.command(short_help="Put a machine on a network.", epilog="Example: insula network attach lab web")
@click.option("--address", default="", help="The IPv4 address it is to have there (default: one that is free).")
@quiet_option
@json_option
@_NETWORK
@_MACHINE
def attach(network: str, machine: str, address: str, quiet: bool, as_json: bool) -> None:
    """Put a machine on a network, at once if it runs."""
    request = network_requests.AttachNetwork(network=network, name=machine, address=address)
    _on_machine(request, quiet, as_json, f"{machine} is on {network}")


@network.command(short_help="Take a machine off a network.", epilog="Example: insula network detach lab web")
@quiet_option
@json_option
@_NETWORK
@_MACHINE
def detach(network: str, machine: str, quiet: bool, as_json: bool) -> None:
    """Take a machine off a network, at once if it runs."""
    _on_machine(network_requests.DetachNetwork(network=network, name=machine), quiet, as_json, f"{machine} is off {network}")


@network.command(short_help="Plug or pull a machine's cable.", epilog="Example: insula network link web down")
@click.option("--network", default="", help="The cable of this network alone.", shell_complete=later("networks"))
@quiet_option
@json_option
@_MACHINE
@click.argument("state", type=click.Choice(["up", "down"]))
def link(machine: str, state: str, network: str, quiet: bool, as_json: bool) -> None:
    """Plug or pull a machine's network cables, now and for its later starts."""
    request = network_requests.SetLink(name=machine, network=network, up=state == "up")
    _on_machine(request, quiet, as_json, f"{machine}'s cable is {'in' if state == 'up' else 'out'}")


@network.command(short_help="Limit what a machine sends and receives.", epilog="Example: insula network limit web --down 50mbit")
@click.option("--up", type=Rate(), help="What it may send, such as 20mbit; 'unlimited' for no limit.")
@click.option("--down", type=Rate(), help="What it may receive.")
@click.option("--network", default="", help="On this network alone.", shell_complete=later("networks"))
@quiet_option
@json_option
@_MACHINE
def limit(machine: str, up: int | None, down: int | None, network: str, quiet: bool, as_json: bool) -> None:
    """Limit what a machine's cards may send and receive, at once and from now on."""
    if up is None and down is None:
        raise click.UsageError("say what to limit: --up, --down or both")
    request = network_requests.LimitNetwork(name=machine, network=network, up=up, down=down)
    _on_machine(request, quiet, as_json, f"{machine}'s limits are changed")
