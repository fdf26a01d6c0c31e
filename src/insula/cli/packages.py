"""Before a verb that needs them: install the Debian packages that are missing, having said which and why."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

import click

from insula.errors import HostLacks
from insula.host.packages import Purpose, ensure, missing
from insula.model import requests

_NEEDS: Final[dict[type[requests.Request], tuple[Purpose, ...]]] = {
    # A machine may need its image built first, and building one needs QEMU's tools.
    requests.RunMachine: (Purpose.MACHINE, Purpose.IMAGE, Purpose.NETWORK),
    requests.CreateMachine: (Purpose.MACHINE, Purpose.IMAGE, Purpose.NETWORK),
    requests.BuildImage: (Purpose.MACHINE, Purpose.IMAGE),
    requests.WarmImage: (Purpose.MACHINE, Purpose.IMAGE, Purpose.NETWORK),
    requests.StartMachine: (Purpose.MACHINE, Purpose.NETWORK),
    requests.ImportSnapshot: (Purpose.MACHINE,),
    requests.RestartMachine: (Purpose.MACHINE, Purpose.NETWORK),
}


def ensure_packages(request: requests.Request) -> None:
    """Have what ``request`` needs, if it needs anything. Raises HostLacks (``packages_missing``): its hint is the command.

    What only networks need is wanted, but not needed: without it each machine has a passt of its own. So is the jail's, where the
    machine may have leave to run without; if it has none, that is told when it is to start.
    """
    purposes: tuple[Purpose, ...] = _NEEDS.get(type(request), ())
    if Purpose.MACHINE in purposes:
        purposes = (*purposes, Purpose.JAIL)
    if purposes and getattr(getattr(request, "spec", None), "tpm", False):
        purposes = (*purposes, Purpose.TPM)
    if purposes and not getattr(request, "dry_run", False):
        context = click.get_current_context(silent=True)
        try:
            ensure(purposes, confirm=consent(bool(context and context.obj["yes"])), progress=_say)
        except HostLacks as refusal:
            spared = {Purpose.NETWORK} | ({Purpose.JAIL} if _may_be_unjailed(request) else set())
            if missing(set(purposes) - spared):
                if not missing(set(purposes) - spared - {Purpose.JAIL}):
                    refusal.hint = f"{refusal.hint}; or let it run without its whole jail: --insecure"
                raise
            _say(f"{refusal.message} ({refusal.hint})")
            for purpose, words in _WITHOUT.items():
                if missing({purpose}):
                    _say(f"going on without: {words}")


_WITHOUT: Final = {
    Purpose.NETWORK: "machines reach out, each alone, and that is all of networks there is",
    Purpose.JAIL: "no machine is started but those that have leave to run without their whole jail (--insecure)",
}


def _may_be_unjailed(request: Any) -> bool:
    return isinstance(request, requests.StartMachine | requests.RestartMachine) or getattr(request, "insecure", False)


def ensure_sealing() -> None:
    """Have what encryption needs. Raises HostLacks (``packages_missing``)."""
    context = click.get_current_context(silent=True)
    ensure((Purpose.SEAL,), confirm=consent(bool(context and context.obj["yes"])), progress=_say)


def consent(yes: bool) -> Callable[[str], bool] | None:
    """How to ask a question: always yes, at the terminal, or None when nobody is there to ask."""
    if yes:
        return lambda _question: True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    return lambda question: click.confirm(question, default=True, err=True)


def _say(line: str) -> None:
    click.echo(f"insula: {line}", err=True)
