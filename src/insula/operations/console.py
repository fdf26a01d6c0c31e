"""Attach to a machine's serial console. Works for any guest, agent or not."""

from __future__ import annotations

from insula.guest import keeper
from insula.guest.link import open_link
from insula.model.lifecycle import check_transition
from insula.model.requests import OpenConsole
from insula.model.streams import Streams
from insula.operations.context import Context
from insula.operations.observe import observe
from insula.operations.operation import Operation
from insula.store import names
from insula.store.machines import machine_folder


def console(context: Context, request: OpenConsole, operation: Operation, streams: Streams) -> None:
    """Show the console and type on it, until the machine ends or the input does. Raises NotFound, WrongState."""
    del operation
    folder = machine_folder(context.home, request.name)
    status, _ = observe(folder)
    check_transition(request.name, "console", status.state, status.problem)
    with open_link(folder / names.RUN) as link:
        keeper.console(link, streams, follow=request.follow, keys=request.input)
