"""Shut a machine down and boot it again, under one lock."""

from __future__ import annotations

from insula.model.requests import RestartMachine
from insula.model.status import MachineStatus
from insula.operations.context import Context
from insula.operations.hold import hold_machine, status_of
from insula.operations.operation import Operation
from insula.operations.settle import settle_locked
from insula.operations.start import boot
from insula.operations.stop import pull_plug, shut_down

_BOOT_TIMEOUT = 300.0


def restart(context: Context, request: RestartMachine, operation: Operation) -> MachineStatus:
    """Restart a running or paused machine. When it cannot be booted again it stays stopped, and the error says why."""
    with hold_machine(context, request.name, "restart") as held:
        if request.force:
            operation.tell("pull the plug")
            pull_plug(held.folder)
        else:
            shut_down(context, held, operation, request.timeout)
        settle_locked(context.home, held.folder, keep_ephemeral=True)
        boot(context, held.folder, held.record, operation, _BOOT_TIMEOUT)
        return status_of(held.folder)
