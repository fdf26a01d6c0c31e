"""The quick way to a guest: from the command line straight to the keeper, importing nothing but what that takes.

It does what the requests ExecMachine, CopyIn and CopyOut do when all is well. When it is not, the request is done after all,
because explaining may take longer than doing.
"""

from __future__ import annotations

from collections.abc import Sequence

from insula.errors import AgentAbsent, InsulaError, MachineEnded, WrongState
from insula.guest.execute import ExitStatus, execute
from insula.guest.link import open_link
from insula.model.command import Command
from insula.model.streams import Streams
from insula.store import names

TYPE_CHECKING = False  # as in typing, which takes long to load
if TYPE_CHECKING:
    from insula.guest.copying import Meter


def exec_quickly(name: str, command: Command, streams: Streams) -> ExitStatus:
    """Run ``command`` in machine ``name``. Raises as `operations.execute`."""
    try:
        if names.is_component(name):  # else it might lead to another home's machine: let the request say no
            with open_link(names.run_folder(name)) as link:
                return execute(link, command, streams)
    except InsulaError as cause:
        if not _needs_explaining(cause):
            raise
    import msgspec

    from insula.client.local import LocalClient
    from insula.model.requests import ExecMachine

    request = msgspec.convert({"name": name, **command.fields()}, ExecMachine)
    status: ExitStatus = LocalClient().do(request, streams)
    return status


def put_quickly(name: str, sources: Sequence[str], destination: str, meter: Meter | None = None) -> list[str]:
    """Copy ``sources`` of this computer into machine ``name``; returns warnings. Raises as `client.files.put`."""
    try:
        if names.is_component(name):
            from insula.guest.copying import copy_in

            with open_link(names.run_folder(name)) as link:
                return copy_in(link, sources, destination, meter=meter)
    except InsulaError as cause:
        if not _needs_explaining(cause):
            raise
    except OSError:
        pass  # the request tells whose fault it is
    from insula.client.files import put
    from insula.client.local import LocalClient

    return put(LocalClient(), name, sources, destination)


def get_quickly(name: str, sources: Sequence[str], destination: str, meter: Meter | None = None) -> list[str]:
    """Copy ``sources`` of machine ``name`` to ``destination`` here; returns warnings. Raises as `client.files.get`."""
    try:
        if names.is_component(name):
            from insula.guest.copying import copy_out

            with open_link(names.run_folder(name)) as link:
                return copy_out(link, sources, destination, meter=meter).warnings
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
