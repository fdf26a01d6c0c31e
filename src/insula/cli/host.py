"""The commands of the noun *host*."""

from __future__ import annotations

from typing import Any

import click

from insula.cli.common import json_option, perform, quiet_option
from insula.cli.render import print_json

_MARKS = {"ok": "✓", "limited": "!", "missing": "✗"}


@click.command(epilog="Example: insula doctor --fix")
@click.option("--fix", is_flag=True, help="Install what is missing and build what has to be built.")
@click.option("--probe", is_flag=True, help="Try to get out of a machine's jail instead; the exit code is 1 if one can.")
@quiet_option
@json_option
@click.pass_context
def doctor(ctx: click.Context, fix: bool, probe: bool, quiet: bool, as_json: bool) -> int:
    """Find out what this host can do by doing it; for each shortfall, what it costs and the command that mends it."""
    if probe:
        return _probe(fix, quiet, as_json)
    from insula.cli.packages import consent
    from insula.model.requests import ExamineHost

    report = perform(ExamineHost(fix=fix), quiet or as_json, consent(bool(ctx.obj["yes"])))
    if as_json:
        print_json(report)
    else:
        _print_report(report)
    return 0 if report.usable else 1


def _probe(fix: bool, quiet: bool, as_json: bool) -> int:
    from insula.model.requests import ProbeJail

    if fix:
        raise click.UsageError("--probe changes nothing: leave --fix away")
    attempts = perform(ProbeJail(), quiet or as_json)
    if as_json:
        print_json(attempts)
    else:
        for each in attempts:
            mark = _MARKS["ok" if each.result == "blocked" else "missing"]
            click.echo(f"{mark} {each.name}: {each.result} ({each.detail})")
    return 0 if all(attempt.result == "blocked" for attempt in attempts) else 1


def _print_report(report: Any) -> None:
    for fact in report.facts:
        click.echo(f"{_MARKS[fact.state]} {fact.name}: {fact.detail}")
        if fact.state != "ok":
            if fact.costs:
                click.echo(f"    costs: {fact.costs}")
            if fact.fix:
                click.echo(f"    mend:  {fact.fix}")


@click.command(epilog="Example: insula completion bash > /etc/bash_completion.d/insula")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL."""
    from click.shell_completion import get_completion_class

    from insula.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "insula", "_INSULA_COMPLETE").source())
