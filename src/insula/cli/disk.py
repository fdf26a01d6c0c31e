"""The commands of the noun *disk*."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from insula.cli.common import json_option, perform
from insula.cli.group import Noun
from insula.cli.render import print_json, print_table
from insula.cli.values import later
from insula.model.requests import ShowDiskUsage
from insula.model.units import format_size

if TYPE_CHECKING:
    from insula.model.status import HolderUsage

_KEY = 12  # of an image's or state's key are shown


@click.group(cls=Noun, epilog="Example: insula disk usage")
def disk() -> None:
    """See what holds this computer's disk space."""


@disk.command(epilog="Examples: insula disk usage  |  insula disk usage web")
@json_option
@click.argument("names", nargs=-1, metavar="NAME...", shell_complete=later("machines"))
def usage(names: tuple[str, ...], as_json: bool) -> None:
    """Show what machines, images and kept states hold. OWN is freed by deleting; SHARED is held by others, too."""
    found = perform(ShowDiskUsage(names=tuple(dict.fromkeys(names))), quiet=True)
    if as_json:
        print_json(found)
        return
    print_table(
        ("KIND", "NAME", "OWN", "SHARED", "HEADS", "LAYERS", "MEMORY", "REST"),
        (
            (
                each.kind,
                each.name if each.kind in ("machine", "host", "cache") else each.name[:_KEY],
                *(format_size(size) for size in (each.own, each.shared, each.heads, each.layers, each.memory, each.rest)),
            )
            for each in found.holders
        ),
    )
    for each in found.holders if names else ():
        _print_shared(each)
    click.echo(f"total: {format_size(found.total)}, what is shared counted once")


def _print_shared(usage: HolderUsage) -> None:
    for file in usage.shared_files:
        others = ", ".join(file.others[:5]) + (", …" if len(file.others) > 5 else "")
        click.echo(f"{usage.name}: {file.path} {format_size(file.size)}, shared with {others}")
