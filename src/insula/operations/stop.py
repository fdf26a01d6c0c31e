"""Stop a machine: ask the guest, then press its power button, then pull the plug; each step bounded, each told."""

from __future__ import annotations

import contextlib
from pathlib import Path

from insula.errors import GuestError, InsulaError, MachineEnded, NotFound
from insula.model.requests import StopMachine
from insula.model.status import MachineStatus, State
from insula.operations.context import Context
from insula.operations.hold import Held, hold_machine
from insula.operations.observe import is_alive, observe, wait_gone
from insula.operations.operation import Operation
from insula.operations.settle import end_by_force, settle_locked
from insula.store import names
from insula.store.events import append_event
from insula.store.locks import machine_lock
from insula.store.machines import machine_folder

_AFTER_PLUG = 15.0
_OBEDIENCE = 8.0
_KEEPERS_LAST = 5.0
_BUTTON_SHARE = 0.5
_ANSWER = 10.0


def stop(context: Context, request: StopMachine, operation: Operation) -> MachineStatus:
    """Stop a machine; on return its processes are gone and its run folder is cleared. A stopped one is left alone.

    ``force`` pulls the plug at once and does not wait for a verb that holds the machine.
    """
    if request.force:
        return _stop_now(context, request, operation)
    with hold_machine(context, request.name, "stop") as held:
        operation.unchanged = held.already
        if held.already:
            return held.status
        shut_down(context, held, operation, request.timeout)
        status, _ = observe(held.folder)
        settle_locked(context.home, held.folder)
        return status


def _stop_now(context: Context, request: StopMachine, operation: Operation) -> MachineStatus:
    folder = machine_folder(context.home, request.name)
    if not is_alive(folder):
        with hold_machine(context, request.name, "stop") as held:
            operation.unchanged = held.already
            if held.already:
                return held.status
    operation.tell("pull the plug")
    before, _ = observe(folder)
    pull_plug(folder)
    try:
        with machine_lock(folder / names.LOCK, request.name, "stop", patience=_AFTER_PLUG):
            status, _ = observe(folder)
            settle_locked(context.home, folder)
            return status
    except NotFound:
        # Made to be deleted at its end, it was: by the keeper's call, while we waited for the lock.
        if not before.ephemeral:
            raise
        return before


def shut_down(context: Context, held: Held, operation: Operation, timeout: float) -> None:
    """The three steps, each waiting ``timeout`` seconds for QEMU to end."""
    run = held.folder / names.RUN
    if held.status.state is State.PAUSED:
        operation.tell("let it run, so that it can shut down")
        with contextlib.suppress(InsulaError):  # whatever keeps it from that, the plug is left
            context.engine.resume(run)
    append_event(held.folder, "stopping")
    if held.record.boot.agent and held.status.agent:
        operation.tell("ask the guest to shut down")
        if _ask_guest(held.folder) and _wait_end(held.folder, timeout):
            return
    operation.tell("press the power button")
    with contextlib.suppress(InsulaError):
        context.engine.power_button(run)
    if _wait_end(held.folder, timeout * _BUTTON_SHARE):
        return
    operation.tell("pull the plug")
    pull_plug(held.folder)


def _ask_guest(folder: Path) -> bool:
    """Whether the guest's agent agreed to shut down."""
    from insula.guest.agent import shutdown
    from insula.guest.link import open_link

    try:
        with open_link(folder / names.RUN) as link:
            shutdown(link, "poweroff", timeout=_ANSWER)
    except MachineEnded:
        return True
    except InsulaError:  # it is absent, does not answer or was paused: there are other ways
        return False
    return True


def _wait_end(folder: Path, timeout: float) -> bool:
    """Whether QEMU ended within ``timeout`` seconds."""
    from insula.guest.keeper import wait_end
    from insula.guest.link import open_link

    try:
        with open_link(folder / names.RUN) as link:
            wait_end(link, timeout)
    except MachineEnded:
        pass
    except GuestError as cause:
        return cause.code == "keeper_busy" and wait_gone(folder, timeout)  # it serves others, and says nothing wrong
    return wait_gone(folder, _KEEPERS_LAST)  # a keeper's word is not enough


def pull_plug(folder: Path) -> None:
    """End QEMU at once, as a power cut would, and return when it is gone; over the head of a keeper that does not do it.

    Raises InsulaError (``keeper_stuck``).
    """
    from insula.guest.keeper import quit_machine
    from insula.guest.link import open_link

    try:
        with open_link(folder / names.RUN) as link:
            quit_machine(link, "kill", timeout=_OBEDIENCE)
    except MachineEnded:
        pass
    except GuestError:
        end_by_force(folder)
        return
    if not wait_gone(folder, _KEEPERS_LAST):
        end_by_force(folder)
