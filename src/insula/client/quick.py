"""The quick way to a guest: from the command line straight to the keeper, importing nothing but what that takes.

It does what the requests ExecMachine, CopyIn and CopyOut do when all is well. When it is not, the request is done after all,
because explaining may take longer than doing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from insula.errors import AgentAbsent, InsulaError, MachineEnded, WrongState
from insula.guest.execute import ExitStatus, execute
from insula.guest.link import open_link
from insula.model.streams import Streams
from insula.store import names


def exec_quickly(
    name: str,
    argv: Sequence[str],
    streams: Streams,
    *,
    env: Sequence[str] = (),
    user: str = "",
    cwd: str = "",
    tty: bool = False,
    rows: int = 24,
    cols: int = 80,
    wait: float = 0.0,
) -> ExitStatus:
    """Run ``argv`` in machine ``name``. Raises as `operations.execute`."""
    try:
        if names.is_component(name):  # else it might lead to another home's machine: let the request say no
            with open_link(names.run_folder(name)) as link:
                return execute(link, argv, streams, env=env, cwd=cwd, user=user, tty=tty, rows=rows, cols=cols, wait=wait)
    except InsulaError as cause:
        if not _needs_explaining(cause):
            raise
    from insula.client.local import LocalClient
    from insula.model.requests import ExecMachine

    request = ExecMachine(
        name=name, argv=tuple(argv), env=tuple(env), user=user, cwd=cwd, tty=tty, rows=rows, cols=cols, wait=wait
    )
    status: ExitStatus = LocalClient().do(request, streams)
    return status


def put_quickly(name: str, sources: Sequence[str], destination: str) -> list[str]:
    """Copy ``sources`` of this computer into machine ``name``; returns warnings. Raises as `client.files.put`."""
    try:
        if names.is_component(name):
            from insula.guest.copying import copy_in

            with open_link(names.run_folder(name)) as link:
                return copy_in(link, sources, destination)
    except InsulaError as cause:
        if not _needs_explaining(cause):
            raise
    except OSError:
        pass  # the request tells whose fault it is
    from insula.client.files import put
    from insula.client.local import LocalClient

    return put(LocalClient(), name, sources, destination)


def get_quickly(name: str, sources: Sequence[str], destination: str) -> list[str]:
    """Copy ``sources`` of machine ``name`` to ``destination`` here; returns warnings. Raises as `client.files.get`."""
    try:
        # A destination with a slash at its end asks for a folder: what is none is refused by the request.
        if names.is_component(name) and (not destination.endswith("/") or os.path.isdir(destination)):
            from insula.guest.copying import copy_out

            with open_link(names.run_folder(name)) as link:
                return copy_out(link, sources, destination).warnings
    except InsulaError as cause:
        if not _needs_explaining(cause):
            raise
    except OSError:
        pass
    from insula.client.files import get
    from insula.client.local import LocalClient

    return get(LocalClient(), name, sources, destination)


def _needs_explaining(cause: InsulaError) -> bool:
    """Whether the request would know more: that there is no such machine, that it is stopped, why nobody answers."""
    if isinstance(cause, MachineEnded):
        return cause.code == "not_running"
    return isinstance(cause, AgentAbsent | WrongState)
