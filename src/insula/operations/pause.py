"""Pause and resume: the guest's CPUs stand still, its memory and devices stay."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from insula.errors import HostLacks, InsulaError
from insula.model.requests import PauseMachine, ResumeMachine
from insula.model.status import MachineStatus, State
from insula.operations.context import Context
from insula.operations.hold import Held, hold_machine, status_of
from insula.operations.observe import observe_state
from insula.operations.operation import Operation
from insula.operations.squeeze import release_first
from insula.store import names
from insula.store.due import read_due
from insula.store.events import append_event

_ANSWER = 30.0  # seconds for a guest that was loaded to come to itself; it stands again then, and can be told once more
_HEARD = 5.0  # seconds; a keeper hears of it from QEMU within milliseconds
_REFUSED = 1.0  # seconds after the CPUs run; a full disk refuses within milliseconds
_DISK_REASONS = ("no-space", "io-error")


def pause(context: Context, request: PauseMachine, operation: Operation) -> MachineStatus:
    """Pause a running machine; on return its CPUs have stopped. A paused one is left alone."""
    with hold_machine(context, request.name, "pause") as held:
        operation.unchanged = held.already
        if held.already:
            return held.status
        release_first(context, held.folder)  # a guest that stands could not take it
        operation.tell("stop the CPUs")
        context.engine.pause(held.folder / names.RUN)
        append_event(held.folder, "paused")
        _wait_told(held.folder, State.PAUSED)
        return status_of(held.folder)


def resume(context: Context, request: ResumeMachine, operation: Operation) -> MachineStatus:
    """Let a paused machine run on; on return its CPUs run. A running one is left alone. One that was loaded to stand is told
    first what it must know after that; when that cannot be, it stands again.

    Raises HostLacks (``no_space``) or InsulaError (``disk_error``) when what had paused it does so again at once, AgentAbsent
    (``agent_timeout``), GuestError.
    """
    with hold_machine(context, request.name, "resume") as held:
        due = read_due(held.folder / names.RUN)
        operation.unchanged = held.already and due is None
        if operation.unchanged:
            return held.status
        operation.tell("let the CPUs run")
        if due is not None:
            return _resume_loaded(context, held, operation, stands=due.stands)
        since = _since(held.folder)
        context.engine.resume(held.folder / names.RUN)
        append_event(held.folder, "resumed")
        if held.status.reason in _DISK_REASONS:
            _see_it_run(held.folder, since)
        else:
            _wait_told(held.folder, State.RUNNING)
            if held.record.boot.agent and not held.status.agent:
                _wait_answered(held.folder)
        return status_of(held.folder)


def _resume_loaded(context: Context, held: Held, operation: Operation, *, stands: bool) -> MachineStatus:
    """``stands``: whether it does so again when this fails."""
    from insula.operations.awaken import awaken_due

    if held.record.boot.agent:
        operation.tell(f"wait until the guest answers, {_ANSWER:g} s at most")
    try:
        awaken_due(context, held.folder, held.record, _ANSWER)
    except BaseException:
        _wait_told(held.folder, State.PAUSED if stands else State.RUNNING)
        raise
    append_event(held.folder, "resumed")
    _wait_told(held.folder, State.RUNNING)
    return status_of(held.folder)


def _wait_answered(folder: Path) -> None:
    """Its agent was not greeted before it was paused. One that is not heard of just runs."""
    from insula.guest.keeper import wait_agent
    from insula.guest.link import open_link

    with contextlib.suppress(InsulaError), open_link(folder / names.RUN) as link:
        wait_agent(link, _HEARD)


def _since(folder: Path) -> object:
    """The keeper's mark of when the state changed last: two changes show by it though the state is the same again."""
    return observe_state(folder)[1].get("since")


def _see_it_run(folder: Path, since: object) -> None:
    """QEMU does again at once what a disk refused, and stops again when it is refused again. Raises HostLacks, InsulaError."""
    from insula.host.watch import Watch

    deadline = time.monotonic() + _HEARD
    with Watch() as watch:
        watch.add(folder / names.RUN)
        while (left := deadline - time.monotonic()) > 0:
            status = status_of(folder)
            if status.state is State.STOPPED:
                return
            if _since(folder) != since:
                if status.state is State.PAUSED and status.reason in _DISK_REASONS:
                    raise _stopped_again(folder, status.reason)
                if status.state is State.RUNNING:
                    deadline = min(deadline, time.monotonic() + _REFUSED)
                    since = None  # heard of; from now on it must stay so
            watch.wait_change(timeout=max(0.0, min(left, deadline - time.monotonic())))


def _stopped_again(folder: Path, reason: str) -> InsulaError:
    name = folder.name
    if reason == "no-space":
        return HostLacks(
            f"{name} was resumed and stopped again at once: no space left on the disk that holds {folder}",
            code="no_space",
            hint=f"nothing in it is lost: free some space, then: insula resume {name}",
        )
    return InsulaError(
        f"{name} was resumed and stopped again at once: the disk that holds {folder} refuses to be written",
        code="disk_error",
        hint=f"nothing in it is lost: see to that disk (insula events {name} shows the error), then: insula resume {name}",
    )


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
