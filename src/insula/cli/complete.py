"""What the shell offers when Tab is pressed: names of machines, snapshots and images, files where a file may stand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem

from insula.errors import InsulaError
from insula.model.network_requests import ListNetworks
from insula.model.requests import ListImages, ListMachines, ListSnapshots, Request


def machines(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of machines; where several may stand, those that are not there yet."""
    given = context.params.get(parameter.name or "")
    names = (machine.name for machine in _ask(ListMachines()))
    return _beginning(incomplete, (name for name in names if not (isinstance(given, tuple) and name in given)))


def snapshots(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Snapshots, as ``web@before``: of the machine named so far, else of all; those that are not there yet."""
    given = context.params.get(parameter.name or "")
    machine, at, _ = incomplete.partition("@")
    machines = [machine] if at else [each.name for each in _ask(ListMachines()) if each.name.startswith(incomplete)]
    names = (f"{each}@{found.name}" for each in machines for found in _ask(ListSnapshots(name=each)))
    return _beginning(incomplete, (name for name in names if not (isinstance(given, tuple) and name in given)))


def origins(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What can be forked: machines, and from an ``@`` on their snapshots."""
    return snapshots(context, parameter, incomplete) if "@" in incomplete else machines(context, parameter, incomplete)


def images(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of images, and of recipes that come with Insula."""
    del context, parameter
    return _beginning(incomplete, (name for image in _ask(ListImages()) for name in image.names))


def networks(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of networks."""
    del context, parameter
    return _beginning(incomplete, (network.name for network in _ask(ListNetworks())))


def recipes(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """As images, and files when no name fits."""
    return images(context, parameter, incomplete) or _files(incomplete)


def places(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files of this computer, and machines (`web:`) when no file begins like that."""
    import glob

    del context, parameter
    if not incomplete or glob.glob(glob.escape(incomplete) + "*"):
        return _files(incomplete)
    return _beginning(incomplete, (f"{machine.name}:" for machine in _ask(ListMachines()))) or _files(incomplete)


def _files(incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]


def _beginning(incomplete: str, names: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _ask(request: Request) -> list[Any]:
    """What there is; nothing when that cannot be found out, because nobody wants an error in the middle of typing."""
    from insula.client.local import LocalClient

    try:
        return list(LocalClient().do(request))
    except InsulaError:
        return []
