"""Memory that running machines give back for others' sake: their balloons are inflated, and deflated when there is room again.

Only of machines that booted: what the guest of a fork gives back is a page of an image that others map, too. What a guest gave
stands in its run folder before it is asked for, so nothing is taken that nobody knows of; with its QEMU the note is gone. It is
not in the machine's record: whatever takes the machine's state, or changes its size, gives it back first.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import msgspec

from insula.errors import DamagedRecord, InsulaError
from insula.model.units import MIB
from insula.operations.context import Context
from insula.operations.hold import hold_machine
from insula.store import names
from insula.store.events import append_event
from insula.store.locks import held
from insula.store.machines import MachineRecord, read_machine
from insula.store.names import Home
from insula.store.records import read_record, write_record
from insula.store.spares import all_folders

LEAST: Final = 16 * MIB  # less is not worth asking for
_RESERVE: Final = 16  # a guest keeps this part of its memory free, whatever it says


class _Squeezed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``squeezed.json``: bytes in the balloon for others' sake."""

    taken: int
    version: int = 1


def can_squeeze(folder: Path, record: MachineRecord) -> bool:
    """Whether what its guest gives back comes to the host."""
    return bool(record.board and record.board.balloon) and not (folder / names.RUN / names.MEMORY).exists()


def taken_from(folder: Path) -> int:
    """Bytes that a machine has in its balloon for others' sake."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, DamagedRecord):
        return read_record(folder / names.RUN / names.SQUEEZED, _Squeezed).taken
    return 0


def squeeze(context: Context, name: str, wanted: int, hidden: int, floor: int, why: str, *, keep: bool) -> int:
    """Have a running machine's guest give back ``wanted`` bytes, of what it does not use, down to ``floor`` hundredths of what it
    has; returns how many are asked of it. ``hidden``: bytes of its memory that the host has not given it yet, which a balloon
    gets first, and which are no gain. ``keep``: in a balloon that stays; else only what is free in the guest, which it may take
    again whenever it likes.

    Raises NotFound, WrongState, Busy, InsulaError.
    """
    with hold_machine(context, name, "reclaim") as machine:
        run, shape = machine.folder / names.RUN, machine.record.hardware
        said = context.engine.guest_memory(run) if can_squeeze(machine.folder, machine.record) else None
        if said is None:
            return 0
        before = taken_from(machine.folder)
        usable = shape.usable - before
        spare = (said.available if keep else said.free) - usable // _RESERVE
        amount = min(wanted + hidden, spare, usable - shape.usable * floor // 100) // MIB * MIB
        if amount - hidden < LEAST:
            return 0
        write_record(run / names.SQUEEZED, _Squeezed(before + amount))
        actual = context.engine.balloon(run, usable - amount)
        if not keep:
            context.engine.balloon(run, usable, wait=False)
        given = max(0, usable - max(actual, usable - amount))
        _note(machine.folder, before + given if keep else before)
        append_event(machine.folder, "gave-memory", bytes=given, kept=keep, **{"for": why})
        return max(0, given - hidden)


def release(context: Context, folder: Path, record: MachineRecord, *, most: int | None = None, wait: bool = True) -> int:
    """Let a running machine have again what it gave, or ``most`` bytes of it; the caller holds its lock. Returns how many.

    Raises MachineEnded, InsulaError.
    """
    taken = taken_from(folder)
    back = taken if most is None else min(taken, most // MIB * MIB)
    if back <= 0:
        return 0
    context.engine.balloon(folder / names.RUN, record.hardware.usable - (taken - back), wait=wait)
    _note(folder, taken - back)
    append_event(folder, "has-memory-again", bytes=back)
    return back


def relieve(context: Context, left: int) -> None:
    """Let machines have again what they gave for others' sake, as far as ``left`` bytes go. Who is worked on is left alone."""
    for folder in squeezed_folders(context.home):
        if left < LEAST:
            return
        with held(folder / names.LOCK) as free:
            pass
        if not free:
            continue
        with contextlib.suppress(InsulaError, OSError), hold_machine(context, folder.name, "reclaim") as machine:
            left -= release(context, machine.folder, machine.record, most=left, wait=False)


def squeezed_folders(home: Home) -> list[Path]:
    return [folder for folder in all_folders(home) if (folder / names.RUN / names.SQUEEZED).exists()]


def release_first(context: Context, folder: Path) -> None:
    """As `release`, before a verb that its balloon must not be in the way of. A guest that stands, or has ended, keeps it."""
    if taken_from(folder):
        with contextlib.suppress(InsulaError):
            release(context, folder, read_machine(folder))


def _note(folder: Path, taken: int) -> None:
    path = folder / names.RUN / names.SQUEEZED
    if taken:
        write_record(path, _Squeezed(taken))
    else:
        path.unlink(missing_ok=True)
