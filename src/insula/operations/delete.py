"""Delete a machine: its folder goes out of sight at once, then its files."""

from __future__ import annotations

from insula.errors import Busy, NotFound
from insula.model.lifecycle import check_transition
from insula.model.requests import DeleteMachine
from insula.model.status import MachineStatus
from insula.operations.context import Context
from insula.operations.observe import is_alive, observe
from insula.operations.operation import Operation
from insula.operations.recover import recover, sweep
from insula.operations.stop import pull_plug
from insula.store import names
from insula.store.locks import machine_lock
from insula.store.machines import machine_folder, remove_machine_folder

_AFTER_PLUG = 15.0


def delete(context: Context, request: DeleteMachine, operation: Operation, *, cards_behind: bool = False) -> MachineStatus:
    """Delete a stopped machine; with ``force`` also a running one, a busy one and one whose record is damaged.

    ``cards_behind``: to take its cards off their networks is left to what its keeper calls at the end of a running machine.
    Nobody can send or be sent anything by them any more.

    Returns the machine's last status. Raises NotFound, Busy or WrongState, and then nothing was changed.
    """
    sweep(context)
    folder = machine_folder(context.home, request.name)
    status, _ = observe(folder)
    if request.dry_run:
        if not request.force:
            check_transition(request.name, "delete", status.state, status.problem)
        return status
    if request.force and is_alive(folder):
        # Before the lock: a verb that waits for this machine lets go of it once the machine is gone.
        operation.tell("pull the plug")
        pull_plug(folder)
    try:
        with machine_lock(folder / names.LOCK, request.name, "delete", patience=_AFTER_PLUG if request.force else 0.0):
            if request.force and is_alive(folder):
                pull_plug(folder)
            if not recover(context, folder, keep_cards=cards_behind):
                return status
            if not request.force:
                status, _ = observe(folder)
                check_transition(request.name, "delete", status.state, status.problem)
            operation.tell("delete its files")
            remove_machine_folder(context.home, folder)
    except NotFound:
        # Made to be deleted at its end, it was: by the keeper's call, while we waited for the lock.
        if not (request.force and status.ephemeral):
            raise
    except Busy as busy:
        if request.force:
            busy.hint = "end that process first"
        raise
    return status
