"""What machines use, told once: `stats`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from insula.cli.common import json_option, perform
from insula.cli.render import print_json, print_table
from insula.cli.values import later
from insula.model import resource_requests
from insula.model.units import format_size

if TYPE_CHECKING:
    from insula.model.status import TrafficStatus
    from insula.model.usage import MachineUsage, Usage

NAMES = click.argument("machines", nargs=-1, metavar="[NAME...]", shell_complete=later("machines"))


@click.command(epilog="Examples: insula stats web  |  insula stats --prometheus")
@click.option("--interval", type=float, default=0.5, show_default=True, help="Seconds between the two looks that rates are of.")
@click.option("--prometheus", is_flag=True, help="All that is counted, as text for Prometheus.")
@json_option
@NAMES
def stats(machines: tuple[str, ...], as_json: bool, prometheus: bool, interval: float) -> None:
    """Show what machines that run use: CPU, memory, disk, and what passed their network cards."""
    if prometheus and as_json:
        raise click.UsageError("--prometheus is no JSON: leave one of the two out")
    request = resource_requests.ShowUsage(names=machines, interval=0.0 if prometheus else interval)
    usage: Usage = perform(request)
    if prometheus:
        from insula.resources.exposition import exposition

        click.echo(exposition(usage), nl=False)
    elif as_json:
        print_json(usage)
    else:
        print_table(HEADS, (cells(machine) for machine in usage.machines))
        cards = [card for machine in usage.machines for card in machine.cards]
        if cards:
            click.echo()
            _print_cards(cards)


HEADS = ("MACHINE", "CPU", "WAIT", "MEMORY", "READ/s", "WRITE/s", "OPS/s", "LATENCY", "IN/s", "OUT/s", "DROPS")


def read_usage(line: bytes) -> Usage:
    """A line of what `WatchUsage` writes."""
    import msgspec

    from insula.model.usage import Usage

    return msgspec.json.decode(line, type=Usage)


def cells(machine: MachineUsage) -> tuple[str, ...]:
    """A machine as a row of a table."""
    disk, network = machine.disk, machine.network
    return (
        machine.name,
        f"{machine.cpu.used:.0%}",
        f"{machine.cpu.waiting:.0%}",
        format_size(machine.memory.own),
        *(
            (
                format_size(round(disk.read_rate)),
                format_size(round(disk.write_rate)),
                f"{disk.read_operations + disk.write_operations:.0f}",
                _time(latency(machine)),
            )
            if disk is not None
            else ("?", "?", "?", "?")
        ),
        format_size(round(network.receive_rate)),
        format_size(round(network.send_rate)),
        str(network.drops),
    )


def latency(machine: MachineUsage) -> float:
    """Seconds an operation of its disks took on average, of those between the two looks."""
    disk = machine.disk
    if disk is None or not (operations := disk.read_operations + disk.write_operations):
        return 0.0
    spent = disk.read_operations * disk.read_latency + disk.write_operations * disk.write_latency
    return spent / operations


def _time(seconds: float) -> str:
    if not seconds:
        return "-"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _print_cards(cards: list[TrafficStatus]) -> None:
    rows = (
        (
            one.machine, one.network, str(one.received), str(one.sent), str(one.packets_received), str(one.packets_sent),
            str(one.drops),
        )
        for one in cards
    )  # fmt: skip
    print_table(("MACHINE", "NETWORK", "RECEIVED", "SENT", "PACKETS IN", "PACKETS OUT", "DROPS"), rows)
