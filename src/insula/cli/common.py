"""What several commands share: the options, the client, and doing a verb to many machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from insula.cli.render import ProgressLine, print_json
from insula.cli.values import Port, RuleWords, later
from insula.client.local import LocalClient
from insula.errors import InsulaError
from insula.model.requests import BuildImage, CreateMachine, ImportSnapshot, Request, RestartMachine, StartMachine, WarmImage
from insula.operations.dispatch import begin

if TYPE_CHECKING:
    from insula.model.spec import MachineSpec

F = TypeVar("F", bound=Callable[..., Any])
# All others work with what runs already.
_NEED_PACKAGES = (BuildImage, CreateMachine, ImportSnapshot, RestartMachine, StartMachine, WarmImage)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON; errors become one JSON line on standard error.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Do not tell what is being done.")
_SHAPE = ("cpus", "memory", "disk", "firmware", "display", "tpm")


def _not_empty(ctx: click.Context, param: click.Parameter, value: str | None) -> str:
    """``--name "$UNSET"`` is a slip, not the wish for a generated name."""
    if value == "":
        raise click.BadParameter("the name is empty", ctx, param)
    return value or ""


name_option = click.option("--name", callback=_not_empty, help="The machine's name (default: a generated one).")
tpm_option = click.option("--tpm", is_flag=True, help="Give it a TPM 2.0 of its own.")
insecure_option = click.option(
    "--insecure", is_flag=True, help="Where this host can have no whole jail, let it run without what cannot be had."
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")


class Size(click.ParamType[int]):
    """A size such as 512M or 10G, in bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from insula.model.units import parse_size

        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except InsulaError as error:
            self.fail(f"{error.message}; {error.hint}", param, ctx)


def shape_options(command: F) -> F:
    """The options that describe a machine's shape, but for those that make it unlike all others."""
    for option in (
        click.option(
            "--display",
            type=click.Choice(["none", "vga"]),
            default="none",
            show_default=True,
            help="Graphics card: none, or VGA.",
        ),
        click.option(
            "--firmware", type=click.Choice(["bios", "uefi"]), default="bios", show_default=True, help="Firmware to boot by."
        ),
        click.option(
            "--network",
            "networks",
            multiple=True,
            default=("nat",),
            show_default="nat",
            metavar="NAME[,ADDR]",
            shell_complete=later("networks"),
            help="A network to be on, with an address if wanted (repeatable); none: no network.",
        ),
        click.option("--disk", type=Size(), default="10G", show_default=True, help="Size of the root disk (sparse)."),
        click.option("--memory", type=Size(), default="512M", show_default=True, help="Memory."),
        click.option("--cpus", type=int, default=1, show_default=True, help="Number of CPUs."),
    ):
        command = option(command)
    return command


def make_spec(options: dict[str, Any]) -> MachineSpec:
    """The shape that `shape_options` described."""
    from insula.model.spec import MachineSpec, networks_asked

    networks = tuple(word.partition(",")[0] for word in options["networks"])
    return MachineSpec(networks=networks_asked(networks), **{field: options[field] for field in _SHAPE if field in options})


def connection_options(command: F) -> F:
    """The options that say how a new machine is connected, beyond its networks."""
    for option in (
        click.option(
            "--rule", "rules", multiple=True, type=RuleWords(), help="A rule of its firewall, such as 'deny to 10.0.0.0/8'."
        ),
        click.option("--isolated", is_flag=True, help="No machine of its networks sees it."),
        click.option(
            "--profile",
            type=click.Choice(["open", "internet-only", "none"]),
            default="open",
            show_default=True,
            help="What it may send where no rule says: all but this host, no LAN either, or nothing.",
        ),
        click.option(
            "-p",
            "--publish",
            multiple=True,
            type=Port(),
            metavar="[ADDR:]HOSTPORT:GUESTPORT[/udp]",
            help="A port of this host that leads to it (repeatable).",
        ),
    ):
        command = option(command)
    return command


def connection(options: dict[str, Any]) -> dict[str, Any]:
    """What `connection_options` and the networks' addresses described, as fields of a request."""
    from insula.model.network import Firewall

    firewall = Firewall(options["profile"], options["isolated"], tuple(options["rules"]))
    addresses = tuple(word.partition(",")[2] for word in options["networks"])
    return {"addresses": addresses if any(addresses) else (), "published": tuple(options["publish"]), "firewall": firewall}


def client() -> LocalClient:
    return LocalClient()


def perform(request: Request, quiet: bool = False, streams: Any = None) -> Any:
    """Do one request, showing its progress."""
    return _perform(request, quiet, streams)[0]


def _perform(request: Request, quiet: bool, streams: Any = None) -> tuple[Any, bool]:
    """Its result, and whether nothing was left to do."""
    if isinstance(request, _NEED_PACKAGES):
        from insula.cli.packages import ensure_packages

        ensure_packages(request)
    progress = ProgressLine(quiet)
    operation = begin(request, progress)
    try:
        return client().do(request, streams, operation=operation), operation.unchanged
    finally:
        progress.clear()
        for remark in () if quiet else operation.remarks:
            click.echo(remark, err=True)


def perform_each(names: Sequence[str], make: Callable[[str], Request], as_json: bool, quiet: bool, done: str) -> int:
    """Do a verb to each machine; one that fails does not keep the others from it. Returns the exit code."""
    from insula.cli.main import report

    results, status = [], 0
    for name in dict.fromkeys(names):
        try:
            result, unchanged = _perform(make(name), quiet or as_json)
            results.append(result)
            if not (as_json or quiet):
                click.echo(f"{name} is {result.state} already" if unchanged else f"{name} {done}")
                if note := getattr(result, "note", None):
                    click.echo(f"{name}: {note}")
        except InsulaError as error:
            status = max(status, report(error.code, error.message, error.hint, as_json, error.exit_code, cause=error))
    if as_json:
        print_json(results)
    return status
