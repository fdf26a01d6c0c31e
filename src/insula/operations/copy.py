"""Copy files into and out of a guest. What flows are streams of entries; no path of the caller's computer comes here."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from insula.guest.copying import get_entries, put_entries
from insula.model.requests import CopyIn, CopyOut
from insula.operations.context import Context
from insula.operations.operation import Operation
from insula.operations.reach import reached
from insula.store.machines import machine_folder


def copy_in(context: Context, request: CopyIn, operation: Operation, chunks: Iterable[bytes | memoryview]) -> None:
    """Write the stream of entries ``chunks`` to ``request.destination``. Raises NotFound, WrongState, AgentAbsent, GuestError."""
    operation.tell(f"copy to {request.destination}")
    with reached(machine_folder(context.home, request.name), "copy") as link:
        put_entries(link, request.destination, chunks, [name.encode("utf-8", "surrogateescape") for name in request.names])


def copy_out(context: Context, request: CopyOut, operation: Operation) -> Generator[bytes | memoryview, None, None]:
    """The stream of entries of ``request.sources``; closing it early gives up. Each chunk holds good until the next
    one is asked for. Raises as `copy_in`, while it is read.
    """
    operation.tell(f"copy {', '.join(request.sources)}")
    with reached(machine_folder(context.home, request.name), "copy") as link:
        yield from get_entries(link, request.sources)
