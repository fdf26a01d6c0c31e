"""Admit machines: refuse those that this host's memory is not for, before anything is done. See resources/admission.py."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from insula.errors import HostLacks, InsulaError
from insula.host.memory import available_bytes, private_bytes
from insula.isolation.inhabitants import all_inhabitants
from insula.model.units import format_size
from insula.operations.context import Context
from insula.operations.observe import is_alive
from insula.operations.operation import Operation
from insula.resources.admission import Claim, Room, worst_case
from insula.resources.policy import Policy, read_policy
from insula.store.machines import BoardRecord, MachineRecord, read_machine
from insula.store.snapshots import SnapshotRecord
from insula.store.spares import all_folders


def admit(
    context: Context,
    operation: Operation,
    memory: int,
    board: BoardRecord,
    *,
    count: int = 1,
    whose: str = "the machine",
    replaces: str = "",
    grows: bool = False,
    cpus: int = 0,
    needs: Path | None = None,
    whole: bool = False,
) -> None:
    """Let ``count`` machines of this kind come into being; before they are refused, memory is taken back from others
    (reclaim.py). ``whose``: what a message calls them. ``replaces``: the id of the machine whose place one takes, and whose
    memory that gets. ``grows``: it is no machine but more memory for one that runs. ``cpus``: how many each has. ``needs``: a
    folder that is about to be used, and so is not given back. ``whole``: all of it must be available now, by itself.

    Raises HostLacks (``no_memory``): the message has what is asked for and what is left, the hint how many fit. UsageError.
    """
    from insula.operations.promises import check_cpus

    if cpus:
        check_cpus(context, cpus, count=count, whose=whose, replaces=replaces)
    asked = Asked(memory, board, count, whose, replaces, grows, whole)
    room = find_room(context, asked)
    if asked.missing(room) > 0:
        _take_back(context, operation, asked, needs)
        check_room(context, asked)
    else:
        _give_back(context, -asked.missing(room))


class Asked(msgspec.Struct, frozen=True):
    """As the words of `admit`."""

    memory: int
    board: BoardRecord
    count: int
    whose: str
    replaces: str = ""
    grows: bool = False
    whole: bool = False

    def each(self, room: Room) -> int:
        return room.counted(self.memory if self.grows else worst_case(self.memory, self.board.accelerator))

    def missing(self, room: Room) -> int:
        """How many bytes are missing; below 0: how many more there are."""
        uncounted = self.uncounted(room)
        return max(uncounted, self.memory - room.available) if self.whole else uncounted

    def uncounted(self, room: Room) -> int:
        """As `missing`, by what is counted alone."""
        return self.count * self.each(room) - (room.available - room.promised)


def check_room(context: Context, asked: Asked) -> None:
    """As `admit`, but nothing is taken from anybody."""
    room = find_room(context, asked)
    if asked.uncounted(room) > 0:
        whose = f"{asked.count} {asked.whose}" if asked.count > 1 else asked.whose
        raise _refusal(room, asked.each(room), asked.count, whose)
    if asked.missing(room) > 0:
        raise HostLacks(
            f"the machine asks for {format_size(asked.memory)} of memory; this host has {format_size(room.available)} available",
            code="no_memory",
            hint="stop other machines, or make this one with less: --memory",
        )


def find_room(context: Context, asked: Asked) -> Room:
    """The room there is, looked at no more closely than is needed to see that it is enough."""
    policy, alive = read_policy(context.home.root), _alive(context)
    room = _room(alive, asked, policy, dict.fromkeys(alive, 0))
    # What they own makes more room, never less: with enough of it nobody need look through all processes.
    return _room(alive, asked, policy) if asked.missing(room) > 0 else room


def _room(alive: Mapping[str, MachineRecord], asked: Asked, policy: Policy, owned: Mapping[str, int] | None = None) -> Room:
    running = _claims(alive, owned)
    available = available_bytes() + (running.pop(asked.replaces).owned if asked.replaces in running else 0)
    return Room(available, list(running.values()), policy.memory)


def _take_back(context: Context, operation: Operation, asked: Asked, needs: Path | None) -> None:
    from insula.operations.reclaim import Need, reclaim

    policy, claims = read_policy(context.home.root), _claims(_alive(context))
    claims.pop(asked.replaces, None)
    counted = Room(0, [], policy.memory).counted
    reclaim(Need(context, operation, policy, lambda: asked.missing(find_room(context, asked)), claims, counted, needs))


def _give_back(context: Context, left: int) -> None:
    """Let machines that gave memory for others' sake have it again, as far as that is what is ``left``."""
    from insula.operations.squeeze import relieve, squeezed_folders

    if squeezed_folders(context.home):
        relieve(context, left)


def relieve_all(context: Context) -> None:
    """A machine has ended, so there may be room for what others gave."""
    from insula.operations.reclaim import end_merging
    from insula.operations.squeeze import relieve, squeezed_folders

    policy = read_policy(context.home.root)
    if squeezed_folders(context.home):
        room = Room(available_bytes(), list(_claims(_alive(context)).values()), policy.memory)
        relieve(context, room.available - room.promised)
    end_merging(context, policy)


def may_merge(context: Context) -> bool:
    """Whether the host's owner allows that machines' equal pages become one."""
    return read_policy(context.home.root).ksm


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
