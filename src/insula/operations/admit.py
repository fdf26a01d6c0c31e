"""Admit machines: refuse those that this host's memory is not for, before anything is done. See resources/admission.py."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from insula.errors import HostLacks, InsulaError
from insula.host.memory import available_bytes, private_bytes
from insula.isolation.inhabitants import all_inhabitants
from insula.model.units import format_size
from insula.operations.context import Context
from insula.operations.observe import is_alive
from insula.resources.admission import Claim, Room, worst_case
from insula.resources.policy import read_policy
from insula.store.machines import BoardRecord, MachineRecord, read_machine
from insula.store.snapshots import SnapshotRecord
from insula.store.spares import all_folders


def admit(
    context: Context,
    memory: int,
    board: BoardRecord,
    *,
    count: int = 1,
    whose: str = "the machine",
    replaces: str = "",
    grows: bool = False,
    cpus: int = 0,
) -> None:
    """Let ``count`` machines of this kind come into being; spares go before they are refused. ``whose``: what a message calls
    them. ``replaces``: the id of the machine whose place one takes, and whose memory that gets. ``grows``: it is no machine but
    more memory for one that runs. ``cpus``: how many each has.

    Raises HostLacks (``no_memory``): the message has what is asked for and what is left, the hint how many fit. UsageError.
    """
    from insula.operations.promises import check_cpus
    from insula.operations.spare import give_back_memory

    if cpus:
        check_cpus(context, cpus, count=count, whose=whose, replaces=replaces)
    try:
        check_room(context, memory, board, count=count, whose=whose, replaces=replaces, grows=grows)
    except HostLacks:
        give_back_memory(context)
        check_room(context, memory, board, count=count, whose=whose, replaces=replaces, grows=grows)


def check_room(
    context: Context, memory: int, board: BoardRecord, *, count: int, whose: str, replaces: str = "", grows: bool = False
) -> None:
    """As `admit`, but spares stay."""
    policy, alive = read_policy(context.home.root), _alive(context)
    # What they own makes more room, never less: with enough of it nobody need look through all processes.
    for owned in (dict.fromkeys(alive, 0), None):
        running = _claims(alive, owned)
        available = available_bytes() + (running.pop(replaces).owned if replaces in running else 0)
        room = Room(available, list(running.values()), policy.memory)
        each = room.counted(memory if grows else worst_case(memory, board.accelerator))
        if count * each <= room.left:
            return
    raise _refusal(room, each, count, f"{count} {whose}" if count > 1 else whose)


def board_of(context: Context, record: MachineRecord | SnapshotRecord) -> BoardRecord:
    """The board it has, or would get."""
    return record.board or context.engine.choose_board(record.arch)


def _refusal(room: Room, each: int, count: int, whose: str) -> HostLacks:
    fit = room.left // each
    counted = f"each is counted with {format_size(each)}" if count > 1 else f"it is counted with {format_size(each)}"
    others = (
        f"; of the {format_size(room.available)} available {format_size(room.promised)} may yet be taken by those that run"
        if room.running
        else ""
    )
    asked = f"{whose} {'need' if count > 1 else 'needs'} {format_size(count * each)} of memory"
    return HostLacks(
        f"{asked}; this host has {format_size(room.left)} left",
        code="no_memory",
        hint=f"{fit or 'none'} would fit: {counted}{others}" + ("" if fit else "; stop other machines first"),
    )


def _alive(context: Context) -> dict[str, MachineRecord]:
    """The machines and spares that run, by their ids."""
    alive = {}
    for folder in all_folders(context.home):
        with contextlib.suppress(InsulaError, OSError):
            if is_alive(folder):
                record = read_machine(folder)
                alive[record.id] = record
    return alive


def _claims(alive: Mapping[str, MachineRecord], owned: Mapping[str, int] | None = None) -> dict[str, Claim]:
    """What they claim, by their ids. ``owned``: bytes that each has already, where that is not to be found out."""
    if owned is None:
        pids = all_inhabitants(alive) if alive else {}
        owned = {key: sum(private_bytes(pid) for pid in pids.get(key, ())) for key in alive}
    return {
        key: Claim(worst_case(record.hardware.total, record.board.accelerator if record.board else ""), owned[key])
        for key, record in alive.items()
    }
