"""Give a machine another name: one rename of its folder, whatever its state. A running guest's host name follows."""

from __future__ import annotations

import contextlib

from insula.errors import AlreadyExists, InsulaError
from insula.model.names import check_machine_name
from insula.model.requests import RenameMachine
from insula.model.status import MachineStatus, State
from insula.operations.cabling import change_cards
from insula.operations.context import Context
from insula.operations.firewall import follow_rename
from insula.operations.hold import hold_machine, status_of
from insula.operations.identify import identify
from insula.operations.operation import Operation
from insula.store.events import append_event
from insula.store.machines import rename_machine_folder


def rename(context: Context, request: RenameMachine, operation: Operation) -> MachineStatus:
    """Rename. Raises UsageError for a hostile name, AlreadyExists when the new one is taken."""
    check_machine_name(request.new_name)
    with hold_machine(context, request.name, "rename") as held:
        if request.new_name == request.name or context.home.machine(request.new_name).exists():
            raise AlreadyExists(f"the name '{request.new_name}' is taken", code="name_taken", hint="choose another")
        operation.tell(f"rename to {request.new_name}")
        folder = rename_machine_folder(context.home, request.name, request.new_name)
        append_event(folder, "renamed", old=request.name, new=request.new_name)
        if held.status.state.has_process:
            with contextlib.suppress(InsulaError):
                change_cards(context, request.new_name, held.record)
        for other in follow_rename(context, request.name, request.new_name):
            operation.tell(f"{other} was busy: its rules that name {request.name} still do")
        if held.status.state is State.RUNNING and held.status.agent:
            # The name is changed; a guest that does not listen just now learns it at its next start.
            with contextlib.suppress(InsulaError):
                identify(context, folder, held.record)
        return status_of(folder)
