"""Run a program in a guest. Takes no lock: it changes nothing that Insula keeps."""

from __future__ import annotations

from insula.errors import AgentAbsent, MachineEnded, WrongState
from insula.guest.execute import ExitStatus
from insula.guest.execute import execute as execute_over
from insula.guest.link import open_link
from insula.model.lifecycle import check_transition
from insula.model.requests import ExecMachine
from insula.model.streams import Streams
from insula.operations.context import Context
from insula.operations.observe import observe
from insula.operations.operation import Operation
from insula.store import names
from insula.store.machines import machine_folder


def execute(context: Context, request: ExecMachine, operation: Operation, streams: Streams) -> ExitStatus:
    """Run ``request.argv`` in a running machine until it ends.

    Raises NotFound, WrongState, AgentAbsent (saying what to do instead), GuestError, MachineEnded.
    """
    del operation
    folder = machine_folder(context.home, request.name)
    try:
        with open_link(folder / names.RUN) as link:
            return execute_over(
                link,
                request.argv,
                streams,
                env=request.env,
                cwd=request.cwd,
                user=request.user,
                tty=request.tty,
                rows=request.rows,
                cols=request.cols,
                wait=request.wait,
            )
    except AgentAbsent as cause:
        _explain(folder.name, cause, context)
        raise
    except WrongState as cause:
        raise WrongState(
            f"{request.name} is paused: cannot run a command in it", hint=f"to let it run on: insula resume {request.name}"
        ) from cause
    except MachineEnded as cause:
        if cause.code == "not_running":
            status, _ = observe(folder)
            check_transition(request.name, "exec", status.state, status.problem)
        raise


def _explain(name: str, absent: AgentAbsent, context: Context) -> None:
    """Say why nobody answers: paused, still booting, or an image without an agent."""
    status, record = observe(context.home.machine(name))
    check_transition(name, "exec", status.state, status.problem)
    absent.message = f"nobody answers inside {name}"
    if record is not None and not record.boot.agent:
        absent.message += ": its image has no agent"
        absent.hint = f"use its console: insula console {name}"
    else:
        absent.message += ": it is still starting, or its agent does not run"
        absent.hint = f"see what it prints: insula logs {name}; or its console: insula console {name}"
