"""The quick way to a guest: from the command line straight to the keeper, importing nothing but what that takes.

It does what the request ExecMachine does when all is well. When it is not, the request is done after all, because
explaining may take longer than doing.
"""

from __future__ import annotations

from collections.abc import Sequence

from insula.errors import AgentAbsent, MachineEnded, WrongState
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
    except (AgentAbsent, MachineEnded, WrongState) as cause:
        if isinstance(cause, MachineEnded) and cause.code != "not_running":
            raise
    from insula.client.local import LocalClient
    from insula.model.requests import ExecMachine

    request = ExecMachine(
        name=name, argv=tuple(argv), env=tuple(env), user=user, cwd=cwd, tty=tty, rows=rows, cols=cols, wait=wait
    )
    status: ExitStatus = LocalClient().do(request, streams)
    return status
