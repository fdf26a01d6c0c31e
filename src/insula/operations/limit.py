"""Limit: change what a machine is held to, at once if it runs, and from now on."""

from __future__ import annotations

import msgspec

from insula.errors import UsageError
from insula.model.limits import WORDS, Limits
from insula.model.resource_requests import LimitMachine
from insula.model.status import MachineStatus, State
from insula.operations import journal
from insula.operations.cabling import check_holds, narrowed
from insula.operations.context import Context
from insula.operations.hold import Held, hold_machine, status_of
from insula.operations.holding import as_held, forget
from insula.operations.limiting import check, uphold
from insula.operations.operation import Operation
from insula.operations.resize import resize
from insula.store.events import append_event
from insula.store.machines import read_machine, write_machine


def limit(context: Context, request: LimitMachine, operation: Operation) -> MachineStatus:
    """Change a machine's limits, and its CPUs and memory (resize.py) before. It is held to them before they are written down,
    and to the former ones again when that fails.

    Raises NotFound, UsageError (``bad_limit``, ``contradictory_limits``, ``beyond_host``), HostLacks (``no_group``,
    ``limit_refused``, ``no_firewall``); then nothing was changed but, perhaps, its size. Of its CPUs and memory, as
    `resize`.
    """
    sized = request.cpus is not None or request.memory is not None
    if not request.changes and not sized:
        raise UsageError("nothing is asked for", code="bad_limit", hint="say what to limit, such as --cpu-limit 0.5")
    with hold_machine(context, request.name, "limit") as held:
        limits = request.changes.apply(held.record.limits)
        check(limits)
        notes = resize(context, held, operation, cpus=request.cpus, memory=request.memory) if sized else []
        if request.changes:
            now = held._replace(record=read_machine(held.folder)) if sized else held
            _hold_to(context, now, request, limits, operation)
        return msgspec.structs.replace(status_of(held.folder), note="; ".join(notes) or None)


def _hold_to(context: Context, held: Held, request: LimitMachine, limits: Limits, operation: Operation) -> None:
    after = msgspec.structs.replace(held.record, limits=limits)
    for nic in after.nics:
        check_holds(context, narrowed(after, nic), after.firewall)
    stands = held.status.state is State.PAUSED
    with journal.noted(held.folder, "limit", "hold it to its limits", stands=stands, takes_back=True):
        if held.status.state.has_process:
            operation.tell("hold it to its limits")
            uphold(context, held.folder, after, as_held(context, held.folder, held.record))
        write_machine(held.folder, after)
        forget(held.folder)  # what it was held down to for a while is taken back by this
    said = [field for field in WORDS if getattr(request.changes, field) is not None]
    append_event(held.folder, "limited", **{WORDS[field][0]: WORDS[field][2](getattr(limits, field)) for field in said})
