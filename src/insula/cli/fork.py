"""The command `fork`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click
import msgspec

from insula.cli.common import client, json_option, quiet_option
from insula.cli.each import run_in_each
from insula.cli.render import ProgressLine, print_json
from insula.cli.values import Seconds, Setting, later
from insula.errors import InsulaError
from insula.model.names import split_snapshot
from insula.model.requests import DeleteMachine, ExecMachine, ForkMachine

if TYPE_CHECKING:
    from insula.operations.fork import ForkResult


@click.command(
    epilog="Examples: insula fork web  |  insula fork web@before -n 3 --name 'try-{n}'  |  insula fork --rm web -- ./risky",
)
@click.option("-n", "--count", type=int, default=1, show_default=True, help="How many.")
@click.option("--name", "pattern", default="", metavar="PATTERN", help="Their names; {n} counts (default: NAME-{n}).")
@click.option("--rm", is_flag=True, help="Delete each when its CMD, or without CMD the machine itself, ends.")
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input to the command (of a single fork).")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal (of a single fork).")
@click.option("-e", "--env", multiple=True, type=Setting(), metavar="K=V", help="Set an environment variable (repeatable).")
@click.option("-u", "--user", default="", help="Run as this user (default: root).")
@click.option("-w", "--cwd", default="", help="Run in this folder (default: the user's home).")
@click.option("--timeout", type=Seconds(), default=60.0, show_default=True, help="Seconds a fork may take to answer.")
@quiet_option
@json_option
@click.argument("name", metavar="NAME[@SNAP]", shell_complete=later("origins"))
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD...]")
def fork(name: str, command: tuple[str, ...], quiet: bool, as_json: bool, **options: Any) -> int:
    """Make running machines from a running one as it is now, or from a snapshot, and run CMD in each.

    They share memory and disks with their origin, copy on write, and have identities of their own; the origin goes on.
    Without CMD their names are printed. With several, each line of CMD's output begins with its machine's name, and the
    exit code is 0 if all are, else the first other.
    """
    if options["count"] > 1 and (options["interactive"] or options["tty"]):
        raise click.UsageError("Several forks cannot share one terminal or standard input; leave out --interactive and --tty.")
    machine, snapshot = split_snapshot(name)
    request = ForkMachine(
        name=machine,
        snapshot=snapshot,
        count=options["count"],
        pattern=options["pattern"],
        ephemeral=options["rm"],
        attached=options["rm"] and bool(command),
        timeout=options["timeout"],
    )
    progress = ProgressLine(quiet or as_json)
    try:
        forks = client().do(request, listener=progress)
    finally:
        progress.clear()
    if command:
        return _run(forks, command, options, as_json)
    if as_json:
        print_json(forks.machines)
    else:
        click.echo("\n".join(machine.name for machine in forks.machines))
    return 0


def _run(forks: ForkResult, argv: tuple[str, ...], options: dict[str, Any], as_json: bool) -> int:
    """Run the command in each fork. One that has a lease is deleted as soon as its command ended, however that went."""
    leases = {machine.name: lease for machine, lease in zip(forks.machines, forks.leases, strict=False)}

    def drop(name: str) -> None:
        if lease := leases.pop(name, None):
            lease.close()
            with contextlib.suppress(InsulaError):
                client().do(DeleteMachine(name=name, force=True))

    requests = [
        ExecMachine(name=machine.name, argv=argv, env=options["env"], user=options["user"], cwd=options["cwd"])
        for machine in forks.machines
    ]
    try:
        return run_in_one(requests[0], options) if len(requests) == 1 else run_in_each(requests, drop, as_json)
    finally:
        for name in list(leases):
            drop(name)


def run_in_one(request: ExecMachine, options: dict[str, Any]) -> int:
    """As `insula exec` does: our own terminal and pipes."""
    from insula.cli.streams import guest_streams, window_size

    rows, cols = window_size()
    request = msgspec.structs.replace(request, tty=options["tty"], rows=rows, cols=cols)
    with guest_streams(tty=options["tty"], interactive=options["interactive"]) as streams:
        return int(client().do(request, streams).shell_code)
