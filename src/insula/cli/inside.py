"""The commands that reach inside a machine. What `exec` imports is kept small: it is what people wait for most often."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import click

from insula.cli.streams import console_streams, guest_streams, window_size
from insula.cli.values import Seconds, Setting, later, strip_dashes
from insula.errors import Interrupted
from insula.model.command import Command

TYPE_CHECKING = False  # as in typing, which takes long to load
if TYPE_CHECKING:
    from insula.cli.meter import CopyMeter

_json = click.option("--json", "as_json", is_flag=True, help="Errors become one JSON line on standard error.")


def _in_guest(name: str, command: Command, *, interactive: bool) -> int:
    from insula.client.quick import exec_quickly

    command.rows, command.cols = window_size()
    with guest_streams(tty=command.tty, interactive=interactive) as streams:
        status = exec_quickly(name, command, streams)
    if status.why:
        click.echo(f"insula: {status.why}", err=True)
    return status.shell_code


@click.command(
    "exec",
    context_settings={"allow_interspersed_args": False},
    epilog="Examples: insula exec web -- uname -a  |  insula exec -it web -- bash",
)
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input to the command.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option("-e", "--env", multiple=True, type=Setting(), metavar="K=V", help="Set an environment variable (repeatable).")
@click.option("-u", "--user", default="", help="Run as this user: a name, uid or uid:gid (default: root).")
@click.option("-w", "--cwd", default="", help="Run in this folder (default: the user's home).")
@click.option(
    "--wait", type=Seconds(), default=0.0, show_default=True, help="Seconds granted to a guest that does not answer yet."
)
@_json
@click.argument("name", shell_complete=later("machines"))
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD...")
def exec_(
    name: str,
    argv: tuple[str, ...],
    as_json: bool,
    interactive: bool,
    tty: bool,
    env: tuple[str, ...],
    user: str,
    cwd: str,
    wait: float,
) -> int:
    """Run CMD in a machine; exits with its code (128 + n: a signal; 125: Insula failed, 126: not executable, 127: not found)."""
    del as_json
    argv = strip_dashes(argv)
    if not argv:
        raise click.UsageError("Missing the command to run.")
    return _in_guest(name, Command(argv, env=env, user=user, cwd=cwd, tty=tty, wait=wait), interactive=interactive)


@click.command(epilog="Example: insula shell web")
@click.option("-u", "--user", default="", help="Log in as this user (default: root).")
@click.option(
    "--wait", type=Seconds(), default=0.0, show_default=True, help="Seconds granted to a guest that does not answer yet."
)
@_json
@click.argument("name", shell_complete=later("machines"))
def shell(name: str, user: str, wait: float, as_json: bool) -> int:
    """Open a login shell in a machine."""
    from insula.guest.execute import LOGIN_SHELL

    del as_json
    tty = sys.stdin.isatty() and sys.stdout.isatty()
    return _in_guest(name, Command(LOGIN_SHELL, user=user, tty=tty, wait=wait), interactive=True)


def console_words(name: str, direct: bool) -> str:
    """What is said when a console is attached: how to leave, and to log in. Root has no password at first, and a directly booted
    guest asks for none.
    """
    login = f"to log in, give root a password: insula exec -it {name} -- passwd; or use: insula shell {name}"
    return f"console of {name}; leave it by Ctrl-]; {f'nobody can log in there, use: insula shell {name}' if direct else login}"


@click.command(epilog="Example: insula console web   (leave it by Ctrl-])")
@_json
@click.argument("name", shell_complete=later("machines"))
def console(name: str, as_json: bool) -> int:
    """Attach to a machine's serial console; leave it by Ctrl-].

    It is for boot messages and guests without Insula's agent: to work in a machine use `insula shell NAME`, to follow what it
    prints `insula logs -f NAME`. Where the input is not a terminal, its end is the end.
    """
    from insula.cli.common import client
    from insula.model.requests import OpenConsole, ShowMachine

    del as_json
    if sys.stdin.isatty():
        machine = client().do(ShowMachine(name=name))
        if machine.state.has_process:  # else it is refused
            click.echo(console_words(name, machine.firmware == "direct"), err=True)
    with console_streams() as streams:
        try:
            client().do(OpenConsole(name=name), streams)
        except Interrupted as left:
            if left.code != "detached":
                raise
    return 0


@click.command(epilog="Examples: insula copy ./site web:/srv  |  insula copy web:/etc/hosts .")
@click.option("-q", "--quiet", is_flag=True, help="Do not show, on a terminal, how far it is.")
@_json
@click.argument("sources", nargs=-1, required=True, metavar="SRC...", shell_complete=later("places"))
@click.argument("destination", metavar="DST", shell_complete=later("places"))
def copy(sources: tuple[str, ...], destination: str, quiet: bool, as_json: bool) -> None:
    """Copy files and folders into a machine (DST is NAME:PATH) or out of one (every SRC is NAME:PATH), as `cp -r` would."""
    from insula.errors import InsulaError

    try:
        warnings = _copy(sources, destination, told=sys.stderr.isatty() and not (quiet or as_json))
    except InsulaError as error:
        ours = [text for text in (*sources, destination) if ":" in text.partition("/")[0] and os.path.lexists(text)]
        if ours and error.code in ("bad_copy", "bad_name", "machine_not_found"):
            error.hint = f"for the file '{ours[0]}' of this computer write ./{ours[0]}"
        raise
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)


def _copy(sources: tuple[str, ...], destination: str, told: bool) -> list[str]:
    from insula.client.quick import get_quickly, put_quickly
    from insula.errors import UsageError

    target, target_path = _place(destination)
    places = [_place(source) for source in sources]
    machines = {machine for machine, _ in places}
    paths = [path for _, path in places]
    if target is not None and machines == {None}:
        with _meter(target, told) as meter:
            return put_quickly(target, paths, target_path, meter)
    if target is None and len(machines) == 1 and (machine := machines.pop()) is not None:
        with _meter(machine, told) as meter:
            return get_quickly(machine, paths, target_path, meter)
    raise UsageError(
        "a copy goes between this computer and one machine",
        code="bad_copy",
        hint="write NAME:PATH on one side only, as in: insula copy file web:/tmp",
    )


@contextlib.contextmanager
def _meter(name: str, told: bool) -> Iterator[CopyMeter | None]:
    """What shows how far a copy with machine ``name`` is, if that is to be told; its line is gone afterwards."""
    if not told:
        yield None
        return
    from insula.cli.meter import CopyMeter

    meter = CopyMeter(name)
    try:
        yield meter
    finally:
        meter.clear()


def _place(text: str) -> tuple[str | None, str]:
    """The machine (None: this computer) and the path that ``text`` names."""
    from insula.errors import UsageError
    from insula.model.names import split_location

    machine, path = split_location(text)
    if machine is not None and not path:
        raise UsageError(f"'{text}' names no path in the guest", code="bad_copy", hint=f"say where, as in: {text}/root/")
    return machine, path


@click.command(epilog="Example: insula logs -f web")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@_json
@click.argument("name", shell_complete=later("machines"))
def logs(name: str, follow: bool, as_json: bool) -> None:
    """Print what a machine wrote to its console. On a terminal, control characters of the guest are shown, not obeyed."""
    from insula.cli.common import client
    from insula.client.streams import CallbackStreams, PipeStreams
    from insula.model.requests import ReadLogs

    del as_json
    with CallbackStreams(stdout=_show_clean) if sys.stdout.isatty() else PipeStreams(stdin=None, signals=()) as streams:
        client().do(ReadLogs(name=name, follow=follow), streams)


def _show_clean(untrusted: bytes) -> None:
    from insula.model.text import clean

    for line in untrusted.splitlines(keepends=True):
        sys.stdout.write(clean(line.rstrip(b"\r\n"), longest=4000) + ("\n" if line.endswith(b"\n") else ""))
    sys.stdout.flush()


@click.command(epilog="Example: insula events -f web")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@_json
@click.option("-a", "--all", "whole", is_flag=True, help="Also what the keeper and QEMU noted of the same, in capitals.")
@click.argument("name", required=False, default=None, shell_complete=later("machines"))
def events(name: str | None, follow: bool, whole: bool, as_json: bool) -> None:
    """Print what happened to a machine, or to all: one JSON object a line."""
    from insula.cli.common import client
    from insula.client.streams import PipeStreams
    from insula.model.requests import ReadEvents

    del as_json
    if name == "":  # to the request it would mean all machines
        raise click.UsageError("The machine's name is empty.")
    with PipeStreams(stdin=None, signals=()) as streams:
        client().do(ReadEvents(name=name or "", follow=follow, whole=whole), streams)
