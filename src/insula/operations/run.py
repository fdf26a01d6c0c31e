"""Run: make a machine, start it, and do one thing in it; the main story of Insula."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from insula.errors import InsulaError, MachineEnded, UsageError
from insula.model.requests import CreateMachine, DeleteMachine, ExecMachine, Execution, RunMachine
from insula.model.spec import check_spec
from insula.model.status import MachineStatus
from insula.model.streams import Streams
from insula.operations.context import Context
from insula.operations.create import created
from insula.operations.delete import delete
from insula.operations.hold import status_of
from insula.operations.operation import Operation
from insula.operations.start import boot, check_memory
from insula.store import names
from insula.store.machines import read_machine

if TYPE_CHECKING:
    from insula.guest.execute import ExitStatus
    from insula.guest.link import Link


@dataclass
class RunResult:
    """What became of it: the machine, how the command ended (None: there was none), and the lease that an attached
    machine lives by: closing it ends the machine."""

    machine: MachineStatus
    exit: ExitStatus | None = None
    lease: Link | None = None


def run(
    context: Context, request: RunMachine, operation: Operation, open_streams: Callable[[], Streams] | None = None
) -> RunResult:
    """Create and start a machine; with a command (or ``shell``) run that, and delete the machine if it is ephemeral.

    ``open_streams`` is called when the guest is ready for the command: until then the terminal and its Ctrl-C are the user's.

    When it fails before the command ran, an ephemeral machine is gone again; a named one stays, stopped or running, for
    its owner to look at.
    """
    if open_streams is None and (request.argv or request.shell):
        raise UsageError("a command needs streams beside its request", code="no_streams")
    check_spec(request.spec)
    check_memory(request.spec)  # before an image is built and a disk made for a machine that could not be started
    lease: Link | None = None
    made: MachineStatus | None = None
    try:
        with created(context, _creation(request), operation) as folder:
            made = status_of(folder)
            lease = _start(context, request, folder, operation)
        if open_streams is None:
            return RunResult(status_of(folder), lease=lease)
        status = _execute(context, request, made.name, operation, open_streams)
    except BaseException:
        if made is not None:
            _drop(context, request, made.name, lease)
        raise
    _drop(context, request, made.name, lease)
    return RunResult(made, status)


def _creation(request: RunMachine) -> CreateMachine:
    return CreateMachine(image=request.image, name=request.name, spec=request.spec, ephemeral=request.ephemeral)


def _start(context: Context, request: RunMachine, folder: Path, operation: Operation) -> Link | None:
    """Boot, the machine's lock being ours; from the moment its keeper lives an attached machine hangs on our connection."""
    lease: list[Link] = []

    def attach() -> None:
        if request.attached:
            from insula.guest.keeper import hold
            from insula.guest.link import open_link

            link = open_link(folder / names.RUN)
            lease.append(link)
            hold(link, "quit")

    try:
        boot(context, folder, read_machine(folder), operation, request.timeout, launched=attach)
    except BaseException:
        for link in lease:
            link.close()
        raise
    return lease[0] if lease else None


def _execute(
    context: Context, request: RunMachine, name: str, operation: Operation, open_streams: Callable[[], Streams]
) -> ExitStatus:
    from insula.guest.execute import LOGIN_SHELL
    from insula.operations.execute import execute

    what = {field: getattr(request, field) for field in Execution.__struct_fields__}
    inner = ExecMachine(name=name, **what | {"argv": request.argv or LOGIN_SHELL})
    operation.tell("run the command")
    streams = open_streams()
    try:
        return execute(context, inner, operation, streams)
    except MachineEnded as ended:
        # `run tiny -- poweroff`: the machine going down under its own command is an end like any other.
        ended.message = f"{name} ended before the command did" + (f": {ended.message}" if ended.message else "")
        raise
    finally:
        streams.close()


def _drop(context: Context, request: RunMachine, name: str, lease: Link | None) -> None:
    """The end of an ephemeral machine that was only made for this command."""
    if lease is not None:
        lease.close()
    if request.ephemeral:
        with contextlib.suppress(InsulaError):
            delete(context, DeleteMachine(name=name, force=True), Operation("delete", name))
