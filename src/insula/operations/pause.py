"""Pause and resume: the guest's CPUs stand still, its memory and devices stay."""

from __future__ import annotations

import time
from pathlib import Path

from insula.model.requests import PauseMachine, ResumeMachine
from insula.model.status import MachineStatus, State
from insula.operations.context import Context
from insula.operations.hold import hold_machine, status_of
from insula.operations.observe import observe_state
from insula.operations.operation import Operation
from insula.store import names
from insula.store.events import append_event

_HEARD = 5.0  # seconds; a keeper hears of it from QEMU within milliseconds


def pause(context: Context, request: PauseMachine, operation: Operation) -> MachineStatus:
    """Pause a running machine; on return its CPUs have stopped. A paused one is left alone."""
    with hold_machine(context, request.name, "pause") as held:
        operation.unchanged = held.already
        if held.already:
            return held.status
        operation.tell("stop the CPUs")
        context.engine.pause(held.folder / names.RUN)
        append_event(held.folder, "paused")
        _wait_told(held.folder, State.PAUSED)
        return status_of(held.folder)


def resume(context: Context, request: ResumeMachine, operation: Operation) -> MachineStatus:
    """Let a paused machine run on; on return its CPUs run. A running one is left alone."""
    with hold_machine(context, request.name, "resume") as held:
        operation.unchanged = held.already
        if held.already:
            return held.status
        operation.tell("let the CPUs run")
        context.engine.resume(held.folder / names.RUN)
        append_event(held.folder, "resumed")
        _wait_told(held.folder, State.RUNNING)
        return status_of(held.folder)


def _wait_told(folder: Path, wanted: State) -> None:
    """Wait until the keeper, too, has heard of it from QEMU: the next command goes by what it says.

    A guest may run on or end meanwhile, so that it never says so: then this gives up after a while.
    """
    from insula.host.watch import Watch

    deadline = time.monotonic() + _HEARD
    with Watch() as watch:
        watch.add(folder / names.RUN)
        while observe_state(folder)[0] not in (wanted, State.STOPPED) and (left := deadline - time.monotonic()) > 0:
            watch.wait_change(timeout=left)
