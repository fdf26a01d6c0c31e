"""What is left to do when a machine has ended: note why, clear its run folder, delete it if that was its fate.

The keeper's outer half calls for it at the end of every machine; any verb that takes the lock does it first, for
machines whose keeper could not call. Doing it twice does nothing the second time.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from insula.errors import InsulaError
from insula.host.files import remove_tree
from insula.model.status import End
from insula.operations.apart import leave
from insula.operations.cabling import uncable
from insula.operations.observe import end_of, observe_state, wait_gone
from insula.resources.groups import drop, group_of, leaf_of, was_out_of_memory
from insula.store import names
from insula.store.ends import write_end
from insula.store.events import append_event
from insula.store.machines import machine_names, read_machine, remove_machine_folder
from insula.store.names import Home

_EVICTION = 10.0
_KEEPERS_LAST = 5.0  # it takes a second at most to tell its clients of the end


def find_by_id(home: Home, machine_id: str) -> Path | None:
    """The folder of the machine with this id, whatever its name is by now."""
    for name in machine_names(home):
        with contextlib.suppress(InsulaError, OSError):
            if read_machine(home.machine(name)).id == machine_id:
                return home.machine(name)
    return None


def settle_locked(home: Home, folder: Path, *, keep_ephemeral: bool = False, keep_cards: bool = False) -> bool:
    """Settle if it has ended; the caller holds the lock. Returns whether the folder still exists.

    ``keep_ephemeral``: do not delete a machine that was to go at its end, because it is about to be started again.
    ``keep_cards``: leave its cards on their networks, because others are to take their places.
    """
    run = folder / names.RUN
    if not run.exists() or observe_state(folder)[0].has_process:
        return True
    if not wait_gone(folder, _KEEPERS_LAST):
        end_by_force(folder)
    end = _end_of(home, folder)
    with contextlib.suppress(InsulaError):
        record = read_machine(folder)
        drop(home, record.id, keep=leaf_of(folder / names.RUN_NEXT))
        if not leaf_of(folder / names.RUN_NEXT):
            leave(home, record.id)
        if not keep_cards:
            uncable(home, record)
    append_event(folder, "ended", reason=end.reason, detail=end.detail)
    if not keep_ephemeral and is_ephemeral(folder):
        remove_machine_folder(home, folder)
        return False
    noted = _note(folder, end)
    remove_tree(run)
    if not noted:  # a full disk, with a little room now; better no note than a machine that cannot be settled
        _note(folder, end)
    return True


def _end_of(home: Home, folder: Path) -> End:
    """Why it ended. A QEMU that the kernel killed because of the fence around its memory has no words of its own for that."""
    end = end_of(folder)
    if end.reason in ("killed", "crashed"):
        group = group_of(home, folder / names.RUN)
        if group is not None and was_out_of_memory(group):
            return msgspec.structs.replace(end, reason="memory-limit", detail="QEMU took more memory than this machine may have")
    return end


def end_by_force(folder: Path) -> None:
    """End the processes of a machine whose keeper does not. Raises InsulaError (``keeper_stuck``) when that fails too."""
    from insula.isolation.inhabitants import evict

    machine_id = ""
    with contextlib.suppress(InsulaError, OSError):
        machine_id = read_machine(folder).id
    if not evict(folder, machine_id, _EVICTION) or not wait_gone(folder, _KEEPERS_LAST):
        raise InsulaError(
            f"something still serves {folder / names.RUN / names.KEEPER_SOCKET} and cannot be ended",
            code="keeper_stuck",
            hint=f"end what this shows: lsof +D {folder}",
        )


def is_ephemeral(folder: Path) -> bool:
    """Whether the machine is to be deleted at its end; one whose record cannot be read is not."""
    try:
        return read_machine(folder).ephemeral
    except (InsulaError, OSError):
        return False


def _note(folder: Path, end: End) -> bool:
    """Write down why it ended; whether that could be done."""
    try:
        write_end(folder, end)
    except InsulaError:
        return False
    return True
