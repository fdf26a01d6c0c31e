"""Finish or undo what a verb that died left behind. Whoever holds the machine's lock calls this first."""

from __future__ import annotations

import contextlib
from pathlib import Path

from insula.errors import InsulaError
from insula.model.status import State
from insula.operations import journal
from insula.operations.observe import is_alive, observe
from insula.operations.settle import end_by_force, is_ephemeral, settle_locked
from insula.store import names
from insula.store.events import append_event
from insula.store.locks import machine_lock
from insula.store.machines import machine_names, remove_machine_folder, sweep_machines
from insula.store.names import Home


def recover(home: Home, folder: Path) -> bool:
    """Bring the machine to a state some verb meant it to have. Returns whether it still exists.

    A ``start`` that died before its machine ran leaves a run folder without a keeper: settled like any ended machine. One
    that died while the guest was booting leaves a running machine: it runs on, and what was not told to the guest is told
    now, or by the next verb that changes the machine once its agent answers. An ephemeral machine whose start was never
    finished is nobody's, and is deleted. Renaming and deleting are one rename each and leave nothing.
    """
    entry = journal.pending(folder)
    if entry is not None and is_ephemeral(folder):
        _discard(home, folder)
        return False
    if not settle_locked(home, folder):
        return False
    if entry is not None and (not is_alive(folder) or _finish_start(folder)):
        append_event(folder, "recovered", verb=entry.verb, step=entry.step)
        journal.clear(folder)
    return True


def sweep(home: Home) -> None:
    """Remove what dead commands left: half-made and half-deleted machines, and ephemeral ones they never came to own."""
    sweep_machines(home)
    for name in machine_names(home):
        folder = home.machine(name)
        if (folder / names.JOURNAL).exists() and is_ephemeral(folder):
            # Busy: its verb is at work, not dead.
            with contextlib.suppress(InsulaError), machine_lock(folder / names.LOCK, name, "recover"):
                recover(home, folder)


def _discard(home: Home, folder: Path) -> None:
    if is_alive(folder):
        end_by_force(folder)
    remove_machine_folder(home, folder)


def _finish_start(folder: Path) -> bool:
    """Tell the guest of a running machine who it is; whether that is done, or need not be."""
    from insula.operations.identify import identify

    status, record = observe(folder)
    if record is None or not record.boot.agent:
        return True
    if not status.agent or status.state is not State.RUNNING:
        return False
    with contextlib.suppress(InsulaError):
        identify(folder, record)
        return True
    return False
