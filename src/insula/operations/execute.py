"""Run a program in a guest. Takes no lock: it changes nothing that Insula keeps."""

from __future__ import annotations

from insula.guest.execute import ExitStatus
from insula.guest.execute import execute as execute_over
from insula.model.requests import ExecMachine
from insula.model.streams import Streams
from insula.operations.context import Context
from insula.operations.operation import Operation
from insula.operations.reach import reached
from insula.store.machines import machine_folder


def execute(context: Context, request: ExecMachine, operation: Operation, streams: Streams) -> ExitStatus:
    """Run ``request.argv`` in a running machine until it ends.

    Raises NotFound, WrongState, AgentAbsent (saying what to do instead), GuestError, MachineEnded.
    """
    del operation
    folder = machine_folder(context.home, request.name)
    with reached(folder, "exec") as link:
        return execute_over(link, request, streams)
