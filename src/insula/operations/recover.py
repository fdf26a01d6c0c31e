"""Finish or undo what a verb that died left behind. Whoever holds the machine's lock calls this first."""

from __future__ import annotations

from pathlib import Path

from insula.operations import journal
from insula.operations.observe import is_alive
from insula.operations.settle import settle_locked
from insula.store.events import append_event
from insula.store.names import Home


def recover(home: Home, folder: Path) -> bool:
    """Bring the machine to a state some verb meant it to have. Returns whether it still exists.

    A ``start`` that died before its machine ran leaves a run folder without a keeper: settled like any ended machine. One
    that died while the guest was booting leaves a running machine: it runs on, and what was not told to the guest is told
    by whoever next needs its agent. Renaming and deleting are one rename each and leave nothing.
    """
    entry = journal.pending(folder)
    if not settle_locked(home, folder):
        return False
    if entry is not None:
        append_event(folder, "recovered", verb=entry.verb, step=entry.step)
        if not is_alive(folder):
            journal.clear(folder)
    return True
