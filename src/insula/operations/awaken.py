"""Let a machine go on from a state: load it, and, once it runs, tell the guest what is different now.

QEMU loads, the guest stands → cables out → it goes on → entropy, clock, and for a fork identity → cables in
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from insula.errors import AgentAbsent, GuestError
from insula.model.identity import Identity
from insula.operations.context import Context
from insula.operations.identify import identify
from insula.operations.start import launch_plan
from insula.store import names
from insula.store.machines import MachineRecord
from insula.store.snapshots import MemoryState

if TYPE_CHECKING:
    from insula.guest.link import Link

# Programs an image may have, run in name order in a guest that finds itself forked; see docs/images.md.
FORK_HOOKS: Final = "/etc/insula/fork.d"
_HOOKS_TIME: Final = 30.0


def load(context: Context, folder: Path, record: MachineRecord, origin: Path, memory: MemoryState, run: str = names.RUN) -> None:
    """Start a QEMU for the machine in ``folder`` that has loaded the state in the folder ``origin``; the guest stands.

    Raises as `Engine.launch`, and MachineEnded (``load_failed``).
    """
    from insula.engines.base import LoadPlan

    mapped = memory.offset is not None
    plan = LoadPlan(origin / names.STATE, origin / names.MEMORY if mapped else None, memory.offset or 0)
    context.engine.launch(launch_plan(folder, record, plan, run))


def awaken(context: Context, folder: Path, record: MachineRecord, timeout: float, former: Identity | None = None) -> None:
    """Let the loaded guest go on and tell it the time and, if it is a fork of a machine with the identity ``former``, who it is.

    A guest without an agent just goes on. Raises MachineEnded, GuestError, AgentAbsent (no answer within ``timeout`` seconds).
    """
    from insula.guest.keeper import wait_agent
    from insula.guest.link import open_link

    run = folder / names.RUN
    forked = former is not None
    if forked:
        context.engine.set_links(run, False)
    context.engine.resume(run)
    if record.boot.agent:
        deadline = time.monotonic() + timeout
        try:
            with open_link(run) as link:
                wait_agent(link, timeout)
                _renew(link)
                if former is not None:
                    identify(folder, record, former)
                    _run_hooks(link, deadline - time.monotonic())
        except GuestError as cause:
            if cause.code != "timeout":
                raise
            raise AgentAbsent(f"{folder.name} did not answer within {timeout:g} s", code="agent_timeout") from cause
    if forked:
        context.engine.set_links(run, True)


def _renew(link: Link) -> None:
    """A guest that goes on twice must not draw the same random numbers, and has lost track of time."""
    from insula.guest.agent import reseed, set_clock

    reseed(link)
    set_clock(link)


def _run_hooks(link: Link, timeout: float) -> None:
    """How a hook ends is its own affair; the fork is made all the same. Raises MachineEnded."""
    try:
        link.call("stat", path=FORK_HOOKS, timeout=max(0.0, timeout))
    except GuestError:
        return
    with contextlib.suppress(GuestError):
        argv = ("/bin/sh", "-c", f'for hook in {FORK_HOOKS}/*; do if [ -x "$hook" ]; then "$hook"; fi; done')
        link.open("exec", argv=argv).finish(timeout=max(0.0, min(timeout, _HOOKS_TIME)))
