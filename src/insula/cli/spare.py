"""The commands of the noun *spare*."""

from __future__ import annotations

from typing import Any

import click

from insula.cli.common import json_option, make_spec, perform, quiet_option, shape_options
from insula.cli.group import Noun
from insula.cli.render import print_json, print_table
from insula.cli.values import later
from insula.model.requests import ListSpares, SetSpares


@click.group(cls=Noun, epilog="Example: insula spare set 2 debian")
def spare() -> None:
    """Forks made ahead: loaded, standing, waiting for a name. Each takes some 40 MiB of memory."""


@spare.command(
    "set",
    short_help="Say how many spares there shall be.",
    epilog="Examples: insula spare set 2 debian  |  insula spare set 0 debian  |  insula spare set 4 web@ready",
)
@shape_options
@quiet_option
@json_option
@click.argument("count", type=int)
@click.argument("origin", metavar="IMAGE|NAME@SNAP", shell_complete=later("images"))
def set_(count: int, origin: str, quiet: bool, as_json: bool, **options: Any) -> None:
    """Keep COUNT spares of an image in a shape, or of a snapshot. Those that `run` and `fork` take are made anew behind."""
    status = perform(SetSpares(origin=origin, count=count, spec=make_spec(options)), quiet or as_json)
    if as_json:
        print_json(status)
    else:
        click.echo(f"{status.ready} spares of {origin} are ready")


@spare.command("list", short_help="List spares.", epilog="Example: insula spare list")
@json_option
def list_(as_json: bool) -> None:
    """List what spares are wanted, and how many are ready."""
    found = perform(ListSpares())
    if as_json:
        print_json(found)
    else:
        print_table(("OF", "WANTED", "READY"), ((one.origin, str(one.wanted), str(one.ready)) for one in found))
