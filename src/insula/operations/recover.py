"""Finish or undo what a verb that died left behind. Whoever holds the machine's lock calls this first.

It decides by what is there; the journal, which a power cut can bring back, only says whether to look. See docs/snapshots.md.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from insula.errors import InsulaError, NotFound
from insula.host.files import fsync_folder, is_temporary, remove_tree
from insula.model.requests import SettleMachine
from insula.model.status import State
from insula.operations import journal
from insula.operations.apart import leave
from insula.operations.apart import sweep as sweep_cores
from insula.operations.cabling import uncable, uncable_all
from insula.operations.context import Context
from insula.operations.hardware import RESIZE, reconcile
from insula.operations.observe import is_alive, observe
from insula.operations.operation import Operation
from insula.operations.rewire import rewire
from insula.operations.settle import end_by_force, find_by_id, is_ephemeral, settle_locked
from insula.resources.groups import drop, leaf_of
from insula.resources.groups import sweep as sweep_groups
from insula.store import names
from insula.store.due import read_due
from insula.store.events import append_event
from insula.store.locks import machine_lock, sweep_locks
from insula.store.machines import machine_names, read_machine, remove_machine_folder, sweep_machines
from insula.store.names import Home
from insula.store.networks import release_claims
from insula.store.snapshots import PUBLISH, finish_publishing, sweep_snapshots, unpublished, unwanted_snapshots
from insula.store.warm import sweep_warm

# Verbs that bring a machine to life: an ephemeral one whose verb died meanwhile is nobody's.
_BIRTHS: Final = frozenset({"create", "start", "fork"})
# After these the guest is told who it is: its name, its cards' addresses.
_TOLD: Final = _BIRTHS | {"attach"}
_PATIENCE: Final = 120.0
_EMPTYING: Final = 10.0  # seconds for the last of a machine's helpers to end with it
_ANSWER: Final = 20.0  # seconds for a guest that was loaded to come to itself
_PLACES: Final = (names.SNAPSHOTS, names.DISKS, names.LAYERS, names.FIRMWARE, names.TPM)


def settle(context: Context, request: SettleMachine, operation: Operation) -> None:
    """Settle the machine with this id, once the verb that ends it (if one does) has let go of it. Of one that is deleted by then
    the cards are taken off their networks: whoever deleted it may have left that to us."""
    from insula.operations.admit import relieve_all

    operation.tell("clean up")
    _settle(context, request)
    with contextlib.suppress(InsulaError, OSError):  # what this machine had others may have again
        relieve_all(context)


def _settle(context: Context, request: SettleMachine) -> None:
    folder = find_by_id(context.home, request.id)
    if folder is not None:
        with contextlib.suppress(NotFound), machine_lock(folder / names.LOCK, folder.name, "settle", patience=_PATIENCE):
            recover(context, folder)
            drop(context.home, request.id, keep=leaf_of(folder / names.RUN), timeout=_EMPTYING)  # it may run again by now
            return
    uncable_all(context.home, request.id)
    drop(context.home, request.id, timeout=_EMPTYING)
    leave(context.home, request.id)


def recover(context: Context, folder: Path, *, keep_cards: bool = False) -> bool:
    """Bring the machine to a state some verb meant it to have. Returns whether it still exists. ``keep_cards``: of one that has
    ended, as `settle_locked`.

    A ``start`` that died before its machine ran leaves a run folder without a keeper: settled like any ended machine. One
    that died while the guest was booting leaves a running machine: it runs on, and what was not told to the guest is told
    now, or by the next verb that changes the machine once its agent answers. An ephemeral machine whose start was never
    finished is nobody's, and is deleted. Renaming and deleting are one rename each and leave nothing. A QEMU that was loaded to
    take the place of another has no guest that ever ran, and goes.
    """
    entry = journal.pending(folder)
    if entry is None:
        _end_next(folder)
        if not settle_locked(context.home, folder, keep_cards=keep_cards):
            return False
        _sweep_scraps(folder)
        return True
    if entry.verb in _BIRTHS and is_ephemeral(folder):
        _discard(context.home, folder)
        return False
    _make_sure(folder)
    _end_next(folder)
    if is_alive(folder) and _is_to_end(folder, entry):
        end_by_force(folder)
    if not settle_locked(context.home, folder):
        return False
    if _finish(context, folder, entry):
        append_event(folder, "recovered", verb=entry.verb, step=entry.step)
        journal.clear(folder)
    return True


def _is_to_end(folder: Path, entry: journal.Entry) -> bool:
    """Whether the QEMU that a dead verb left is nobody's: it stands for good because its state is kept, is a fork that may not
    know who it is, or was loaded from a state that still waits to be loaded."""
    if entry.step == PUBLISH:
        return unpublished(folder) is not None
    return entry.verb == "fork" or (entry.verb == "wake" and (folder / names.SUSPENDED).exists())


def _finish(context: Context, folder: Path, entry: journal.Entry) -> bool:
    """Finish or undo what ``entry`` began; whether that is done."""
    done = True
    if is_alive(folder):
        due = read_due(folder / names.RUN)
        stands = entry.stands or due is not None
        done = _rejoin(context, folder, goes_on=not stands) and _rewire(context, folder, alive=True)
        done = done and (entry.verb != "limit" or _uphold(context, folder))
        done = done and (entry.verb not in _TOLD or _finish_start(context, folder))
        done = done and (entry.verb != RESIZE or _reconcile(context, folder))
        if due is not None and not due.stands and not entry.stands:
            _finish_due(context, folder)
    else:
        finish_publishing(folder, entry.verb, entry.step)
        with contextlib.suppress(InsulaError, OSError):
            uncable(context.home, read_machine(folder))  # of a verb that died before QEMU was there
        _rewire(context, folder, alive=False)
    if done:
        _sweep_files(folder)
    return done


def sweep(context: Context) -> None:
    """Remove what dead commands left: half-made and half-deleted machines and warm states, locks of work that nobody does any
    more, and ephemeral machines they never came to own."""
    home = context.home
    sweep_machines(home, end=lambda folder: _end_half_made(home, folder))
    sweep_warm(home)
    sweep_locks(home.host)
    sweep_groups(home)
    sweep_cores(home)
    for name in machine_names(home):
        folder = home.machine(name)
        if (folder / names.JOURNAL).exists() and (is_ephemeral(folder) or _is_just_made(folder)):
            # Busy: its verb is at work, not dead.
            with contextlib.suppress(InsulaError), machine_lock(folder / names.LOCK, name, "recover"):
                recover(context, folder)


def _is_just_made(folder: Path) -> bool:
    entry = journal.pending(folder)
    return entry is not None and entry.verb == "create"


def _make_sure(folder: Path) -> None:
    """A dead verb may have been killed between giving a name and making sure of it; what is built on it must not outlive it."""
    for path in (folder.parent, folder, *(folder / name for name in _PLACES)):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            fsync_folder(path)


def _end_half_made(home: Home, folder: Path) -> None:
    """A machine without a name that was started ends by its keeper, unless that was not told in time. Its cards go, too."""
    if (folder / names.RUN).exists():
        end_by_force(folder)
    with contextlib.suppress(InsulaError, OSError):
        record = read_machine(folder)
        uncable(home, record)
        release_claims(home, record.id)


def _discard(home: Home, folder: Path) -> None:
    _end_next(folder)
    if is_alive(folder):
        end_by_force(folder)
    with contextlib.suppress(InsulaError, OSError):
        uncable(home, read_machine(folder))
    remove_machine_folder(home, folder)


def _end_next(folder: Path) -> None:
    """Its keeper ends it when the verb that started it dies, so this is for those that could not be told in time."""
    from insula.guest.keeper import quit_machine
    from insula.guest.link import open_link

    run = folder / names.RUN_NEXT
    if run.exists():
        with contextlib.suppress(InsulaError), open_link(run) as link:
            quit_machine(link, "kill", timeout=10.0)
        remove_tree(run)


def _rejoin(context: Context, folder: Path, *, goes_on: bool) -> bool:
    """Let a QEMU whose verb died before its disks switched follow the machine's record, and a guest that stands because of that
    verb run on, if its keeper did not. Whether both is so now."""
    from insula.operations.capture import former_heads, new_heads

    try:
        record = read_machine(folder)
        heads = new_heads(folder, record)
        context.engine.switch_heads(folder / names.RUN, heads, former_heads(folder, record), go_on=goes_on)
    except InsulaError:
        return False
    return True


def _rewire(context: Context, folder: Path, *, alive: bool) -> bool:
    """Make what hangs on networks for the machine what its record says; whether that could be done."""
    try:
        rewire(context, folder, alive=alive)
    except (InsulaError, OSError):
        return False
    return True


def _uphold(context: Context, folder: Path) -> bool:
    """Hold a running machine to its limits as its record says them; whether that could be done."""
    from insula.operations.limiting import uphold

    with contextlib.suppress(InsulaError, OSError):
        uphold(context, folder, read_machine(folder))
        return True
    return False


def _reconcile(context: Context, folder: Path) -> bool:
    """Write down what CPUs and memory the machine has; whether that could be done."""
    with contextlib.suppress(InsulaError):
        reconcile(context, folder, read_machine(folder))
        return True
    return False


def _sweep_files(folder: Path) -> None:
    remove_tree(folder / names.ORIGIN)
    _sweep_snapshots(folder)
    _remove_scraps(folder)


def _sweep_scraps(folder: Path) -> None:
    """What a power cut, or a death in mid-write, leaves of verbs that had no journal yet, need none, or had cleared it."""
    if unwanted_snapshots(folder):
        _sweep_snapshots(folder)
    _remove_scraps(folder)


def _sweep_snapshots(folder: Path) -> None:
    with contextlib.suppress(InsulaError, FileNotFoundError):
        sweep_snapshots(folder, read_machine(folder))


def _remove_scraps(folder: Path) -> None:
    for place in (folder / names.SNAPSHOTS).glob("[!.]*/.*"):  # a snapshot's record is written anew when its parent goes
        if is_temporary(place.name):
            place.unlink(missing_ok=True)
    for name in os.listdir(folder):
        if name.startswith(names.GONE_PREFIX):
            remove_tree(folder / name)
        elif is_temporary(name):
            (folder / name).unlink(missing_ok=True)


def _finish_due(context: Context, folder: Path) -> None:
    """Let a guest that was loaded go on, if its keeper did not, and tell it what is new. One that does not listen in time goes on
    without, and is told by `resume`."""
    from insula.operations.awaken import awaken_due

    with contextlib.suppress(InsulaError):
        awaken_due(context, folder, read_machine(folder), _ANSWER)


def _finish_start(context: Context, folder: Path) -> bool:
    """Tell the guest of a running machine who it is; whether that is done, or need not be."""
    from insula.operations.addressing import introduce

    status, record = observe(folder)
    if record is None or not record.boot.agent:
        return True
    if not status.agent or status.state is not State.RUNNING:
        return False
    with contextlib.suppress(InsulaError):
        introduce(context, folder, record)
        return True
    return False
