"""Pause and resume: the guest's CPUs stand still, its memory and devices stay."""

from __future__ import annotations

from insula.model.requests import PauseMachine, ResumeMachine
from insula.model.status import MachineStatus
from insula.operations.context import Context
from insula.operations.hold import hold_machine, status_of
from insula.operations.operation import Operation
from insula.store import names
from insula.store.events import append_event


def pause(context: Context, request: PauseMachine, operation: Operation) -> MachineStatus:
    """Pause a running machine; on return its CPUs have stopped."""
    with hold_machine(context, request.name, "pause") as held:
        operation.tell("stop the CPUs")
        context.engine.pause(held.folder / names.RUN)
        append_event(held.folder, "paused")
        return status_of(held.folder)


def resume(context: Context, request: ResumeMachine, operation: Operation) -> MachineStatus:
    """Let a paused machine run on; on return its CPUs run."""
    with hold_machine(context, request.name, "resume") as held:
        operation.tell("let the CPUs run")
        context.engine.resume(held.folder / names.RUN)
        append_event(held.folder, "resumed")
        return status_of(held.folder)
