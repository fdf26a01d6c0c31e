"""The commands of the noun *machine*."""

from __future__ import annotations

import sys
from typing import Any

import click

from insula.cli.common import (
    client,
    connection,
    connection_options,
    dry_run_option,
    insecure_option,
    json_option,
    make_spec,
    name_option,
    perform,
    perform_each,
    quiet_option,
    shape_options,
    tpm_option,
)
from insula.cli.limits import limit_options, limits_asked
from insula.cli.render import ProgressLine, age, print_json, print_table
from insula.cli.values import Seconds, Setting, later, strip_dashes
from insula.model.requests import (
    CloneMachine,
    CreateMachine,
    DeleteMachine,
    ListMachines,
    PauseMachine,
    RenameMachine,
    RestartMachine,
    ResumeMachine,
    RunMachine,
    ShowMachine,
    ShowSecurity,
    StartMachine,
    StopMachine,
    SuspendMachine,
)
from insula.model.units import format_size

_NAMES = click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=later("machines"))
_TIMEOUT = click.option("--timeout", type=Seconds(), default=60.0, show_default=True, help="Seconds each attempt may take.")


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog="Examples: insula run debian -- uname -a  |  insula run --name web --detach debian  |  insula run debian",
)
@name_option
@tpm_option
@shape_options
@connection_options
@limit_options
@insecure_option
@click.option("-d", "--detach", is_flag=True, help="Leave the machine running and come back at once.")
@click.option("--rm", is_flag=True, help="Delete the machine when it ends.")
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input to the command.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option("-e", "--env", multiple=True, type=Setting(), metavar="K=V", help="Set an environment variable (repeatable).")
@click.option("-u", "--user", default="", help="Run as this user (default: root).")
@click.option("-w", "--cwd", default="", help="Run in this folder (default: the user's home).")
@click.option("--timeout", type=Seconds(), default=300.0, show_default=True, help="Seconds the guest may take to answer.")
@click.option("--cold", is_flag=True, help="Boot it, instead of going on from a state the image has just after boot.")
@quiet_option
@json_option
@click.argument("image", shell_complete=later("images"))
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD...]")
def run(image: str, argv: tuple[str, ...], as_json: bool, quiet: bool, **options: Any) -> int:
    """Make a machine from IMAGE, start it, and run CMD in it.

    With CMD and neither --name nor --detach the machine is deleted when CMD ends. Without CMD: a login shell on a
    terminal, otherwise the machine is left running.
    """
    from insula.cli.packages import ensure_packages
    from insula.cli.streams import guest_streams, window_size

    command = strip_dashes(argv)
    if command and options["detach"]:
        raise click.UsageError("--detach comes back at once and cannot wait for a command; start it afterwards by: insula exec")
    shell = not command and not options["detach"] and sys.stdin.isatty() and sys.stdout.isatty()
    attached = bool(command or shell) and not options["detach"]
    tty = options["tty"] or shell
    rows, cols = window_size()
    request = RunMachine(
        image=image,
        name=options["name"],
        spec=make_spec(options),
        **connection(options),
        limits=limits_asked(options),
        insecure=options["insecure"],
        ephemeral=options["rm"] or (attached and not options["name"]),
        attached=attached and not options["name"],
        shell=shell,
        argv=command,
        env=options["env"],
        user=options["user"],
        cwd=options["cwd"],
        tty=tty,
        rows=rows,
        cols=cols,
        timeout=options["timeout"],
        cold=options["cold"],
    )
    ensure_packages(request)
    progress = ProgressLine(quiet or as_json)

    def open_streams() -> Any:
        progress.clear()
        return guest_streams(tty=tty, interactive=options["interactive"] or shell)

    try:
        result = client().do(request, open_streams if attached else None, listener=progress)
    finally:
        progress.clear()
    if attached:
        if result.exit.why:
            click.echo(f"insula: {result.exit.why}", err=True)
        return int(result.exit.shell_code)
    if as_json:
        print_json(result.machine)
    else:
        click.echo(result.machine.name)
    return 0


@click.command(epilog="Example: insula create --name web --memory 1G debian")
@name_option
@tpm_option
@shape_options
@connection_options
@limit_options
@insecure_option
@dry_run_option
@quiet_option
@json_option
@click.argument("image", shell_complete=later("images"))
def create(image: str, name: str, insecure: bool, dry_run: bool, quiet: bool, as_json: bool, **shape: Any) -> None:
    """Make a stopped machine from IMAGE."""
    request = CreateMachine(
        image=image, name=name, spec=make_spec(shape), **connection(shape), limits=limits_asked(shape), insecure=insecure,
        dry_run=dry_run,
    )  # fmt: skip
    machine = perform(request, quiet or as_json)
    if as_json:
        print_json(machine)
    else:
        click.echo(f"would create {machine.name} from {machine.image}" if dry_run else machine.name)


@click.command("list", epilog="Example: insula list --json")
@json_option
def list_(as_json: bool) -> None:
    """List machines."""
    machines = perform(ListMachines())
    if as_json:
        print_json(machines)
        return
    print_table(
        ("NAME", "STATE", "IMAGE", "ADDRESSES", "CPUS", "MEMORY", "AGE", "NOTE"),
        (
            (
                machine.name,
                machine.state,
                machine.image,
                ",".join(machine.addresses) or "-",
                str(machine.cpus or "-"),
                format_size(machine.memory) if machine.memory else "-",
                age(machine.created) if machine.created else "-",
                _note(machine),
            )
            for machine in machines
        ),
    )


def _note(machine: Any) -> str:
    unjailed = f"without {machine.unjailed}" if machine.unjailed else ""
    return "; ".join(words for words in (machine.problem or machine.reason, unjailed) if words)


@click.command(epilog="Example: insula show web")
@click.option("--security", is_flag=True, help="Show which layers of the jail around running machines hold instead.")
@json_option
@_NAMES
def show(names: tuple[str, ...], security: bool, as_json: bool) -> None:
    """Show all that is known of machines."""
    details = [perform(ShowSecurity(name=name) if security else ShowMachine(name=name)) for name in names]
    if as_json:
        print_json(details)
        return
    from insula.cli.details import print_details, print_security

    for index, detail in enumerate(details):
        if index:
            click.echo()
        (print_security if security else print_details)(detail)


@click.command(epilog="Example: insula start web db")
@click.option("--timeout", type=Seconds(), default=300.0, show_default=True, help="Seconds the guest may take to answer.")
@click.option("--no-wait", is_flag=True, help="Do not wait until the guest answers.")
@click.option("--cold", is_flag=True, help="Boot a suspended machine; what its memory held is lost.")
@click.option(
    "--insecure/--no-insecure", default=None, help="Let it run without what of its jail cannot be had here; or no more."
)
@quiet_option
@json_option
@_NAMES
def start(
    names: tuple[str, ...], timeout: float, no_wait: bool, cold: bool, insecure: bool | None, quiet: bool, as_json: bool
) -> int:
    """Start machines and wait until they answer. A suspended one goes on where it was."""

    def make(name: str) -> StartMachine:
        return StartMachine(name=name, timeout=0.0 if no_wait else timeout, cold=cold, insecure=insecure)

    return perform_each(names, make, as_json, quiet, "started")


@click.command(epilog="Example: insula stop web")
@click.option("--force", is_flag=True, help="End the machine at once, as pulling the plug would.")
@_TIMEOUT
@quiet_option
@json_option
@_NAMES
def stop(names: tuple[str, ...], force: bool, timeout: float, quiet: bool, as_json: bool) -> int:
    """Shut machines down: ask the guest, then press the power button, then pull the plug."""
    return perform_each(names, lambda name: StopMachine(name=name, force=force, timeout=timeout), as_json, quiet, "stopped")


@click.command(epilog="Example: insula restart web")
@click.option("--force", is_flag=True, help="Do not ask the guest first.")
@_TIMEOUT
@quiet_option
@json_option
@_NAMES
def restart(names: tuple[str, ...], force: bool, timeout: float, quiet: bool, as_json: bool) -> int:
    """Shut machines down and start them again."""
    return perform_each(names, lambda name: RestartMachine(name=name, force=force, timeout=timeout), as_json, quiet, "restarted")


@click.command(epilog="Example: insula pause web")
@quiet_option
@json_option
@_NAMES
def pause(names: tuple[str, ...], quiet: bool, as_json: bool) -> int:
    """Stop the CPUs of machines; memory and devices stay as they are."""
    return perform_each(names, lambda name: PauseMachine(name=name), as_json, quiet, "paused")


@click.command(epilog="Example: insula resume web")
@quiet_option
@json_option
@_NAMES
def resume(names: tuple[str, ...], quiet: bool, as_json: bool) -> int:
    """Let paused machines run on."""
    return perform_each(names, lambda name: ResumeMachine(name=name), as_json, quiet, "resumed")


@click.command(epilog="Example: insula suspend web")
@quiet_option
@json_option
@_NAMES
def suspend(names: tuple[str, ...], quiet: bool, as_json: bool) -> int:
    """Write the memory of machines to disk and turn them off; `insula start` lets them go on where they were."""
    return perform_each(names, lambda name: SuspendMachine(name=name), as_json, quiet, "suspended")


@click.command(epilog="Example: insula clone web shop")
@click.option("--full", is_flag=True, help="Copy the disks, instead of sharing what is in them now.")
@quiet_option
@json_option
@click.argument("name", shell_complete=later("machines"))
@click.argument("new_name", metavar="NEW")
def clone(name: str, new_name: str, full: bool, quiet: bool, as_json: bool) -> None:
    """Make a stopped machine from a stopped one, with an identity of its own."""
    machine = perform(CloneMachine(name=name, new_name=new_name, full=full), quiet or as_json)
    if as_json:
        print_json(machine)
    else:
        click.echo(machine.name)


@click.command(epilog="Example: insula delete --force web")
@click.option("--force", is_flag=True, help="Also when it runs or its record is damaged.")
@dry_run_option
@quiet_option
@json_option
@_NAMES
def delete(names: tuple[str, ...], force: bool, dry_run: bool, quiet: bool, as_json: bool) -> int:
    """Delete machines with their disks."""
    done = "would be deleted" if dry_run else "deleted"
    return perform_each(names, lambda name: DeleteMachine(name=name, force=force, dry_run=dry_run), as_json, quiet, done)


@click.command(epilog="Example: insula rename web shop")
@quiet_option
@json_option
@click.argument("name", shell_complete=later("machines"))
@click.argument("new_name", metavar="NEW")
def rename(name: str, new_name: str, quiet: bool, as_json: bool) -> None:
    """Give a machine another name."""
    machine = perform(RenameMachine(name=name, new_name=new_name), quiet or as_json)
    if as_json:
        print_json(machine)
    elif not quiet:
        click.echo(f"{name} is now {machine.name}")
