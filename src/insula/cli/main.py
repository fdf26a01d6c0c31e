"""The command `insula`: finds the command's module, and turns what happens into an exit code. The one place for both."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
from typing import Any, Final, NoReturn

import click

from insula.cli.group import Noun
from insula.errors import ChildFailed, InsulaError
from insula.version import __version__

# name -> (module below insula.cli, attribute, one line of help). Written out so that `--help` imports none of them.
_COMMANDS: Final[dict[str, tuple[str, str, str]]] = {
    "run": ("machine", "run", "Make a machine from an image, start it, and run a command in it."),
    "create": ("machine", "create", "Make a stopped machine from an image."),
    "list": ("machine", "list_", "List machines."),
    "show": ("machine", "show", "Show all that is known of a machine."),
    "start": ("machine", "start", "Start machines."),
    "stop": ("machine", "stop", "Shut machines down."),
    "restart": ("machine", "restart", "Shut machines down and start them again."),
    "pause": ("machine", "pause", "Stop the CPUs of machines; their memory is kept."),
    "resume": ("machine", "resume", "Let paused machines run on."),
    "delete": ("machine", "delete", "Delete machines with their disks."),
    "limit": ("limits", "limit", "Limit what machines may have of this host."),
    "rename": ("machine", "rename", "Give a machine another name."),
    "snapshot": ("rewind", "snapshot", "Keep a machine as it is, and bring it back to that."),
    "spare": ("spare", "spare", "Keep forks made ahead, so that run and fork need not wait for them."),
    "fork": ("fork", "fork", "Make running machines from a running one, or from a snapshot."),
    "suspend": ("machine", "suspend", "Write machines' memory to disk and turn them off."),
    "clone": ("machine", "clone", "Make a stopped machine from a stopped one."),
    "exec": ("inside", "exec_", "Run a command in a machine."),
    "shell": ("inside", "shell", "Open a login shell in a machine."),
    "console": ("inside", "console", "Attach to a machine's serial console."),
    "copy": ("inside", "copy", "Copy files into or out of a machine."),
    "logs": ("inside", "logs", "Print what a machine wrote to its console."),
    "events": ("inside", "events", "Print what happened to machines."),
    "disk": ("disk", "disk", "See what holds the disk space."),
    "image": ("image", "image", "Build, list, delete and prune images."),
    "network": ("network", "network", "Make networks, and put machines on them."),
    "publish": ("ports", "publish", "Have ports of this host lead to a machine."),
    "unpublish": ("ports", "unpublish", "Take published ports back."),
    "ports": ("ports", "ports", "List published ports."),
    "firewall": ("ports", "firewall", "Say what a machine may send, and what reaches it."),
    "capture": ("ports", "capture", "Write down what passes a machine's network card."),
    "stats": ("usage", "stats", "Show what machines use of this host."),
    "top": ("live", "top", "Watch what machines use of this host."),
    "guard": ("guard", "guard", "Keep machines from making others suffer."),
    "doctor": ("host", "doctor", "Find out what this host can do, and mend what is missing."),
    "completion": ("host", "completion", "Print the completion script for a shell."),
    "_ended": ("behind", "ended", ""),
    "_merge": ("behind", "merge", ""),
    "_warm": ("behind", "rewarm", ""),
    "_spares": ("behind", "refill", ""),
}

_GUEST_COMMANDS: Final = frozenset({"run", "exec", "shell", "fork"})
_INSULA_FAILED: Final = 125
# As a shell has them; see `insula exec --help`.
_GUEST_CODES: Final = {"command_not_executable": 126, "command_not_found": 127, "interrupted": 130}


class Commands(Noun):
    """All commands, imported one at a time."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in _COMMANDS if not name.startswith("_")]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f"insula.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name][2]) for name in self.list_commands(ctx)])


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Example: insula run debian -- uname -a",
)
@click.version_option(__version__, prog_name="insula", message="%(prog)s %(version)s")
@click.option("--yes", is_flag=True, help="Ask nothing; take every question as answered by yes.")
@click.pass_context
def cli(ctx: click.Context, yes: bool) -> None:
    """Isolated machines on this computer: virtual machines from signed images, with their own CPUs, memory and disk."""
    ctx.obj = {"yes": yes or os.environ.get("INSULA_YES") == "1"}


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command line and exit: 0, 1 failed, 2 wrong usage; run, exec and shell pass the guest's code, 125 for ours."""
    _fill_standard_streams()
    words = sys.argv[1:] if arguments is None else arguments
    _leave(run_command(words))


def _leave(status: int) -> NoReturn:
    """End at once: to take all modules down in good order would cost a quick command a seventh of its time.

    Nothing of ours waits for that order: there is no thread and no hook at exit by now, and every file was closed by whoever
    opened it, but for the standard streams.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it, or it was closed: said already, or nobody to be told
            stream.flush()
    os._exit(status)


def _fill_standard_streams() -> None:
    """Give a closed standard stream something harmless, lest a socket of ours gets its number and somebody prints into it."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            while os.open(os.devnull, os.O_RDWR) < descriptor:
                pass
            setattr(sys, name, os.fdopen(descriptor, mode))


def run_command(words: list[str]) -> int:
    ours = words[: words.index("--")] if "--" in words else words
    command = next((word for word in ours if not word.startswith("-")), "")
    in_guest = command in _GUEST_COMMANDS
    as_json = "--json" in ours
    try:
        result: Any = cli.main(args=words, prog_name="insula", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Abort:
        click.echo("", err=True)
        return 130
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        return report(
            "usage", error.format_message(), _usage_hint(error), as_json, _INSULA_FAILED if in_guest else error.exit_code
        )
    except InsulaError as error:
        code = guest_code(error) if in_guest else error.exit_code
        return report(error.code, error.message, error.hint, as_json, code, cause=error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output is gone (`insula list | head -1`): nothing is left to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            return _bug(as_json, _INSULA_FAILED if in_guest else 1)
        # Our own files explain themselves (dispatch.py): this is `insula list > /a/full/disk`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return report("no_space", "no space left where the output goes", None, as_json, _INSULA_FAILED if in_guest else 1)
    except Exception:  # noqa: BLE001 - the last door: a bug's exit code must not look like the guest's own
        return _bug(as_json, _INSULA_FAILED if in_guest else 1)


def guest_code(error: InsulaError) -> int:
    """The exit code of a command that was to pass on a guest's own."""
    return _GUEST_CODES.get(error.code, _INSULA_FAILED)


def _bug(as_json: bool, status: int) -> int:
    """Tell of the exception at hand, which nobody expected."""
    import traceback

    traceback.print_exc()
    return report("bug", "this is a bug in Insula", "report it with the lines above", as_json, status)


def _usage_hint(error: click.ClickException) -> str | None:
    context = getattr(error, "ctx", None)
    return f"see: {context.command_path} --help" if context is not None else None


def report(code: str, message: str, hint: str | None, as_json: bool, status: int, cause: BaseException | None = None) -> int:
    """Tell of an error on standard error, with what caused it; returns ``status``."""
    from insula.model.text import clean

    if as_json:
        import json

        click.echo(json.dumps({"code": code, "message": message, "hint": hint}), err=True)
        return status
    lines = [f"insula: {message}", *_last_words(cause)]
    while (cause := cause.__cause__ if cause is not None else None) is not None:
        if isinstance(cause, InsulaError):
            lines += (f"  because: {cause.message}", *_last_words(cause))
    if hint:
        lines.append(f"hint: {hint}")
    # Whatever found its way into a message (a guest's words, a program's, a name somebody made up): no terminal obeys it.
    click.echo("\n".join(clean(line, lines=True) for line in lines), err=True)
    return status


def _last_words(error: BaseException | None) -> list[str]:
    """What a failed program said last, when that is more than the one line its message has already."""
    said = error.output.splitlines()[-12:] if isinstance(error, ChildFailed) else []
    return [f"    {line}" for line in said] if len(said) > 1 else []
