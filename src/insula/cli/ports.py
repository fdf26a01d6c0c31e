"""Published ports, firewalls, and what passes a machine's cards, packet by packet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import click

from insula.cli.common import json_option, perform, quiet_option
from insula.cli.group import Noun
from insula.cli.render import print_json, print_pairs, print_table
from insula.cli.values import Port, later
from insula.model import network_requests
from insula.model.network import format_rule, parse_rule

_MACHINE = click.argument("machine", shell_complete=later("machines"))


def _print_ports(found: list[Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    rows = (
        (one.machine, one.host, str(one.guest_port), one.protocol, one.problem or ("open" if one.listening else "when it runs"))
        for one in found
    )
    print_table(("MACHINE", "HOST", "GUEST", "PROTOCOL", "STATE"), rows)


@click.command(epilog="Examples: insula publish web 8080:80  |  insula publish web 0.0.0.0:5353:53/udp")
@quiet_option
@json_option
@_MACHINE
@click.argument("ports", nargs=-1, required=True, type=Port(), metavar="[ADDR:]HOSTPORT:GUESTPORT[/udp]...")
def publish(machine: str, ports: tuple[Any, ...], quiet: bool, as_json: bool) -> None:
    """Have ports of this host lead to a machine, at once and whenever it runs. Without ADDR only this host can reach them."""
    found = perform(network_requests.PublishPorts(name=machine, ports=ports), quiet or as_json)
    if as_json or not quiet:
        _print_ports(found, as_json)


@click.command(epilog="Example: insula unpublish web 8080:80")
@quiet_option
@json_option
@_MACHINE
@click.argument("ports", nargs=-1, type=Port(), metavar="[PORTS...]")
def unpublish(machine: str, ports: tuple[Any, ...], quiet: bool, as_json: bool) -> None:
    """Take published ports back; none named: all of the machine."""
    found = perform(network_requests.UnpublishPorts(name=machine, ports=ports), quiet or as_json)
    if as_json:
        print_json(found)


@click.command(epilog="Example: insula ports")
@json_option
@click.argument("machine", default="", shell_complete=later("machines"))
def ports(machine: str, as_json: bool) -> None:
    """List published ports, of a machine or of all."""
    _print_ports(perform(network_requests.ListPorts(name=machine)), as_json)


@click.group(cls=Noun, epilog="Example: insula firewall deny web to 10.0.0.0/8")
def firewall() -> None:
    """What a machine may send, and what reaches it."""


def _print_firewall(found: Any, as_json: bool, met: Mapping[str, int] | None = None) -> None:
    """``met``: how many packets met each rule, by its words, where that is known."""
    if as_json:
        print_json(found)
        return
    print_pairs([("profile", found.profile), ("isolated", "yes" if found.isolated else "no")])
    for rule in map(format_rule, found.rules):
        click.echo(f"{rule}{_packets(met[rule]) if met and rule in met else ''}")


def _packets(count: int) -> str:
    return f"  ({count} packet{'' if count == 1 else 's'})"


def _met(machine: str) -> dict[str, int]:
    """How many packets met each rule of a machine, on all its cards."""
    met: Counter[str] = Counter()
    for card in perform(network_requests.ShowTraffic(names=(machine,))):
        met.update(card.rules)
    return met


@firewall.command("show", short_help="Show a machine's firewall.", epilog="Example: insula firewall show web")
@json_option
@_MACHINE
def show(machine: str, as_json: bool) -> None:
    """Show a machine's firewall: its profile and its rules, the first that fits decides. Of one that runs, how many packets met
    each rule."""
    found = perform(network_requests.ShowFirewall(name=machine))
    _print_firewall(found, as_json, _met(machine) if found.rules and not as_json else None)


def _change(as_json: bool, quiet: bool, **change: Any) -> None:
    found = perform(network_requests.SetFirewall(**change), quiet or as_json)
    if as_json or not quiet:
        _print_firewall(found, as_json)


@firewall.command("set", short_help="Choose a profile.", epilog="Example: insula firewall set web --profile internet-only")
@click.option("--profile", type=click.Choice(["open", "internet-only", "none"]), help="What it may send where no rule says.")
@click.option("--isolated/--not-isolated", default=None, help="Whether no machine of its networks sees it.")
@quiet_option
@json_option
@_MACHINE
def set_(machine: str, profile: Any, isolated: bool | None, quiet: bool, as_json: bool) -> None:
    """Choose a machine's profile. open: everything but this host; internet-only: no LAN either; none: nothing."""
    if profile is None and isolated is None:
        raise click.UsageError("say what to set: --profile, --isolated or --not-isolated")
    _change(as_json, quiet, name=machine, profile=profile, isolated=isolated)


_WORDS = click.argument("words", nargs=-1, required=True, metavar="to|from PEER [PROTOCOL] [PORTS]")


@firewall.command(
    "allow", short_help="Let something through.", epilog="Example: insula firewall allow web to example.org tcp 443"
)
@quiet_option
@json_option
@_MACHINE
@_WORDS
def allow(machine: str, words: tuple[str, ...], quiet: bool, as_json: bool) -> None:
    """Add a rule that lets something through. PEER is any, an address, a subnet, a domain or machine:NAME."""
    _change(as_json, quiet, name=machine, add=(parse_rule(" ".join(("allow", *words))),))


@firewall.command("deny", short_help="Block something.", epilog="Example: insula firewall deny web to 10.0.0.0/8")
@quiet_option
@json_option
@_MACHINE
@_WORDS
def deny(machine: str, words: tuple[str, ...], quiet: bool, as_json: bool) -> None:
    """Add a rule that blocks something, also what is going on already."""
    _change(as_json, quiet, name=machine, add=(parse_rule(" ".join(("deny", *words))),))


@firewall.command("remove", short_help="Take a rule out.", epilog="Example: insula firewall remove web deny to 10.0.0.0/8")
@quiet_option
@json_option
@_MACHINE
@click.argument("words", nargs=-1, required=True, metavar="RULE")
def remove(machine: str, words: tuple[str, ...], quiet: bool, as_json: bool) -> None:
    """Take out a rule, written as `firewall show` does."""
    _change(as_json, quiet, name=machine, remove=(parse_rule(" ".join(words)),))


@firewall.command("clear", short_help="Take out all rules.", epilog="Example: insula firewall clear web")
@quiet_option
@json_option
@_MACHINE
def clear(machine: str, quiet: bool, as_json: bool) -> None:
    """Back to the profile 'open' without rules."""
    _change(as_json, quiet, name=machine, clear=True)


@click.command(epilog="Examples: insula capture web web.pcap  |  insula capture web - | wireshark -k -i -")
@click.option("--network", default="", help="The card on this network (default: its first).", shell_complete=later("networks"))
@click.argument("machine", shell_complete=later("machines"))
@click.argument("file")
def capture(machine: str, file: str, network: str) -> None:
    """Write what passes a machine's network card to FILE as pcap, until Ctrl-C; `-` is standard output."""
    from insula.cli.streams import file_streams

    with file_streams(file) as streams:
        perform(network_requests.CaptureTraffic(name=machine, network=network), streams=streams)
