"""How every changing verb begins: find the machine, take its lock, finish what dead ones left, check the state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from insula.errors import NotFound
from insula.model.lifecycle import check_transition, is_already
from insula.model.status import MachineStatus, State
from insula.operations import journal
from insula.operations.context import Context
from insula.operations.observe import observe
from insula.operations.recover import recover, sweep
from insula.store import names
from insula.store.locks import machine_lock
from insula.store.machines import MachineRecord, machine_folder


class Held(NamedTuple):
    """A machine whose lock is ours. ``already``: it is what the verb would make of it."""

    folder: Path
    record: MachineRecord
    status: MachineStatus
    already: bool = False


@contextlib.contextmanager
def hold_machine(context: Context, name: str, verb: str, *, patience: float = 0.0) -> Iterator[Held]:
    """Hold ``name`` for ``verb``. Raises NotFound, Busy, WrongState or DamagedRecord before anything is changed."""
    sweep(context)
    folder = machine_folder(context.home, name)
    with machine_lock(folder / names.LOCK, name, verb, patience=patience):
        status, record = _found(context, folder)
        check_transition(name, verb, status.state, status.problem)
        assert record is not None
        yield Held(folder, record, status, is_already(verb, status.state))


def _found(context: Context, folder: Path) -> tuple[MachineStatus, MachineRecord | None]:
    """The machine, with what dead verbs left finished. One that ends while we look is settled, too: else what is held would be
    stopped, and its cards still on their networks. Raises NotFound."""
    for _ in range(2):
        if not recover(context, folder):
            raise NotFound(f"{folder.name} has ended and was deleted, as it was made to be", code="machine_not_found")
        status, record = observe(folder)
        if status.state.has_process or not (folder / names.RUN).exists():
            break
    return status, record


def noted(held: Held, verb: str, *, takes_back: bool = False) -> contextlib.AbstractContextManager[None]:
    """Note in the machine's journal that its cards, rules or ports are being changed; see `journal.noted`."""
    return journal.noted(
        held.folder, verb, "change its networks", stands=held.status.state is State.PAUSED, takes_back=takes_back
    )


def status_of(folder: Path) -> MachineStatus:
    return observe(folder)[0]


def has_process(folder: Path) -> bool:
    return status_of(folder).state in (State.STARTING, State.RUNNING, State.PAUSED)
