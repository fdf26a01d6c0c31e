"""Reaching into a guest: what the keeper says of one that cannot be asked, told of the machine and with the next step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from insula.errors import AgentAbsent, MachineEnded, WrongState
from insula.guest.link import Link, open_link
from insula.model.lifecycle import check_transition
from insula.model.status import State
from insula.operations.observe import observe
from insula.store import names


@contextlib.contextmanager
def reached(folder: Path, verb: str) -> Iterator[Link]:
    """A link to the guest of the machine in ``folder``, for ``verb``.

    Raises WrongState and DamagedRecord (it does not run), AgentAbsent (nobody answers), all with what to do instead, and
    MachineEnded.
    """
    try:
        with open_link(folder / names.RUN) as link:
            yield link
    except AgentAbsent as cause:
        _explain(folder, verb, cause)
        raise
    except WrongState:  # the keeper says that it is paused, as we do, but not whom it speaks of
        check_transition(folder.name, verb, State.PAUSED)
        raise
    except MachineEnded as cause:
        if cause.code == "not_running":
            status, _ = observe(folder)
            check_transition(folder.name, verb, status.state, status.problem)
        raise


def _explain(folder: Path, verb: str, absent: AgentAbsent) -> None:
    """Say why nobody answers: paused, still booting, or an image without an agent."""
    status, record = observe(folder)
    check_transition(folder.name, verb, status.state, status.problem)
    absent.message = f"nobody answers inside {folder.name}"
    if record is not None and not record.boot.agent:
        absent.message += ": its image has no agent"
        absent.hint = f"use its console: insula console {folder.name}"
    else:
        absent.message += ": it is still starting, or its agent does not run"
        absent.hint = f"see what it prints: insula logs {folder.name}; or its console: insula console {folder.name}"
