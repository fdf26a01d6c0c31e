"""Resize: how many CPUs and how much memory a machine has, at its next start and, as far as its guest goes along, at once.

A running machine's CPUs are plugged in and pulled out. Memory comes in pieces of its own (never as a hole or a page in an image
that forks share), which are pulled out again where the guest can empty them; what is left to take, a balloon takes. The record
says what is about to be plugged in before it is, so that a verb that dies leaves nothing that nobody knows; what QEMU has counts.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from insula.errors import GuestError, InsulaError, UsageError
from insula.model.shape import PIECE, Dimm, Shape, kept_shape, most_memory
from insula.model.spec import MachineSpec, check_spec
from insula.model.status import State
from insula.model.units import MIB, format_size
from insula.operations import journal
from insula.operations.admit import admit, board_of
from insula.operations.context import Context
from insula.operations.hardware import RESIZE, found_shape, reconcile, with_shape
from insula.operations.hold import Held
from insula.operations.holding import as_held
from insula.operations.limiting import uphold
from insula.operations.operation import Operation
from insula.operations.promises import check_cpus
from insula.operations.squeeze import release_first
from insula.store import names
from insula.store.events import append_event
from insula.store.machines import MachineRecord, write_machine

_T = TypeVar("_T")
_LONGEST: Final = 4096
_MOST_NUMBERS: Final = 1 << 16
_SHELL: Final = 20.0  # seconds for a guest to do what takes Linux a tenth of one
_POSSIBLE: Final = "cat /sys/devices/system/cpu/possible"
_CPUS: Final = "cd /sys/devices/system/cpu; n=$(grep -c ^processor /proc/cpuinfo)"
_SET: Final = 'if [ -e cpu$i/online ] && read s <cpu$i/online && [ "$s" = %s ]; then echo %s >cpu$i/online && n=$((n%s1)); fi'
_USE_CPUS: Final = f"{_CPUS}; i=0; while [ $i -lt 255 ] && [ $n -lt %d ]; do i=$((i+1)); {_SET % (0, 1, '+')}; done; cat online"
_LEAVE_CPUS: Final = f"{_CPUS}; i=256; while [ $i -gt 1 ] && [ $n -gt %d ]; do i=$((i-1)); {_SET % (1, 0, '-')}; done; cat online"
_TOTAL: Final = "while read w n u; do [ $w = MemTotal: ] && echo $n; done </proc/meminfo"
# Memory from which nothing but what can be moved away is given out, and which so can be pulled out again.
_MOVABLE: Final = "cd /sys/devices/system/memory && cat auto_online_blocks && echo online_movable >auto_online_blocks"
_USE_MEMORY: Final = (
    'cd /sys/devices/system/memory && for f in memory[0-9]*/state; do read s <$f && [ "$s" = online ] || echo %s >$f; done; '
    f"echo %s >auto_online_blocks; {_TOTAL}"
)
# A guest pays for movable memory with other memory: with more than so many times what it booted with, it may run out of that.
_MOST_MOVABLE: Final = 3


def resize(context: Context, held: Held, operation: Operation, *, cpus: int | None, memory: int | None) -> list[str]:
    """Change the CPUs and the memory (bytes) of a machine whose lock the caller holds; None leaves them. What could not be done
    at once comes with its next start: the sentences returned say that, and why.

    Raises UsageError, HostLacks (``no_memory``), GuestError (``cpu_in_use``, ``memory_in_use``: the guest does not let go); the
    machine has then what it had, but for pieces the guest gave up or took before.
    """
    spec = _wanted(held, cpus, memory)
    if not held.status.state.has_process:
        suspended = held.status.state is State.SUSPENDED
        shape = kept_shape(spec, held.record.hardware) if suspended else None
        write_machine(held.folder, msgspec.structs.replace(held.record, spec=spec, shape=shape))
        return ["it goes on as it was suspended; what is new comes with its next boot"] if suspended and shape is not None else []
    if held.status.state is not State.RUNNING:
        write_machine(held.folder, msgspec.structs.replace(held.record, spec=spec, shape=kept_shape(spec, held.record.hardware)))
        return [f"it is {held.status.state}: what is new comes with its next start"]
    return _Resizing(context, held, operation).run(spec, cpus=cpus is not None, memory=memory is not None)


def _wanted(held: Held, cpus: int | None, memory: int | None) -> MachineSpec:
    spec = held.record.spec
    return check_spec(
        msgspec.structs.replace(spec, cpus=spec.cpus if cpus is None else cpus, memory=spec.memory if memory is None else memory)
    )


class _Resizing:
    """One resize of a running machine; ``record`` is always what is on the disk."""

    def __init__(self, context: Context, held: Held, operation: Operation) -> None:
        self.context = context
        self.folder = held.folder
        self.run_folder = held.folder / names.RUN
        self.answers = held.status.agent and held.record.boot.agent
        self.operation = operation
        self.record = held.record
        self.notes: list[str] = []

    @property
    def shape(self) -> Shape:
        return self.record.hardware

    def run(self, spec: MachineSpec, *, cpus: bool, memory: bool) -> list[str]:
        """``cpus``, ``memory``: which of them are to change."""
        release_first(self.context, self.folder)
        self.record = reconcile(self.context, self.folder, self.record)
        if memory:
            self._check(spec.memory)
        if memory and spec.memory > self.shape.total:
            board = board_of(self.context, self.record)
            more = spec.memory - self.shape.total
            admit(self.context, self.operation, more, board, whose="the memory to be plugged in", grows=True)
        if cpus and spec.cpus > self.shape.used_cpus:
            check_cpus(self.context, spec.cpus, replaces=self.record.id)
        former = self.record
        journal.note(self.folder, RESIZE, "change its CPUs and memory")
        try:
            self._write(spec, former.hardware)
            if cpus:
                self._cpus(spec.cpus)
            if memory:
                self._memory(spec.memory)
        except BaseException:
            with contextlib.suppress(InsulaError):  # else the next verb looks at what there is
                self._write(former.spec, self._found())
                journal.clear(self.folder)
            raise
        journal.clear(self.folder)
        append_event(self.folder, "resized", cpus=self.shape.used_cpus, memory=self.shape.usable)
        return self.notes

    def _check(self, wanted: int) -> None:
        """Raises UsageError (``bad_size``) when memory cannot be plugged in up to ``wanted`` for its size alone."""
        more = wanted - self.shape.total
        if more > 0 and more % PIECE:
            down = wanted - more % PIECE
            raise UsageError(
                f"while it runs a machine gets memory in pieces of {PIECE // MIB} MiB",
                code="bad_size",
                hint=f"ask for {down // MIB}M or {(down + PIECE) // MIB}M; or stop it first",
            )

    def _write(self, spec: MachineSpec, shape: Shape) -> None:
        self.record = msgspec.structs.replace(self.record, spec=spec, shape=kept_shape(spec, shape))
        write_machine(self.folder, self.record)

    def _found(self) -> Shape:
        return found_shape(self.context, self.folder, self.shape)

    def _look(self) -> None:
        """Write down what is there; a machine with less memory than before is held to that."""
        former, self.record = self.record, with_shape(self.folder, self.record, self._found())
        if self.shape.total < former.hardware.total:
            self._uphold(former)

    def _uphold(self, former: MachineRecord) -> None:
        """Let its control group have as much memory as it has itself; what the guard holds it down to stays."""
        after, before = (as_held(self.context, self.folder, record) for record in (self.record, former))
        uphold(self.context, self.folder, after, before)

    # -- CPUs ----------------------------------------------------------------------------------------------------------------
    def _cpus(self, wanted: int) -> None:
        if wanted < self.shape.used_cpus:
            self._fewer_cpus(wanted)
        elif wanted > self.shape.used_cpus:
            self._more_cpus(wanted)

    def _fewer_cpus(self, wanted: int) -> None:
        """Pull CPUs out; where that is not done, have the guest set them aside. Raises GuestError (``cpu_in_use``)."""
        self.operation.tell("take CPUs away")
        if not self.context.engine.can_pull_cpus(board_of(self.context, self.record)):
            self._park(wanted, self._ask(_LEAVE_CPUS % wanted, count_cpus))
            if self.shape.used_cpus > wanted:
                raise GuestError(
                    f"the guest goes on with {self.shape.used_cpus} CPUs",
                    code="cpu_in_use",
                    hint="stop the machine first; it then starts with fewer",
                )
            return
        while len(self.shape.present) > wanted:
            self.context.engine.pull_cpu(self.run_folder, self.shape.present[-1])
            self._look()

    def _more_cpus(self, wanted: int) -> None:
        """Plug CPUs in, as many as the board has room for and the guest can take, and have it use them."""
        self.operation.tell("plug CPUs in")
        possible = self._ask(_POSSIBLE, count_cpus)
        most = self.shape.most_cpus if possible is None else min(possible, self.shape.most_cpus)
        if wanted > most:
            why = "its board has" if most == self.shape.most_cpus else "where CPUs are emulated, its guest's Linux has"
            self.notes.append(f"{wanted} CPUs come with its next start: {why} room for {most}")
            return
        for number in self.shape.free_numbers[: max(0, wanted - len(self.shape.present))]:
            self.context.engine.plug_cpu(self.run_folder, board_of(self.context, self.record), self.shape.cpus, number)
            self._look()
        used = self._ask(_USE_CPUS % wanted, count_cpus)
        self._park(wanted, used)
        if used is None:
            self.notes.append("whether the guest uses its new CPUs is not known: nobody answers in it")
        elif used < wanted:
            self.notes.append(f"the guest uses {used} of its {wanted} CPUs")

    def _park(self, wanted: int, used: int | None) -> None:
        """Write down how many CPUs the guest does not use; when it does not tell, as many as it had set aside."""
        if used is None:
            used = max(wanted, self.shape.used_cpus)
        parked = max(0, len(self.shape.present) - max(1, used))
        self.record = with_shape(self.folder, self.record, msgspec.structs.replace(self.shape, parked=parked))

    # -- memory --------------------------------------------------------------------------------------------------------------
    def _memory(self, wanted: int) -> None:
        if wanted < self.shape.usable:
            self._shrink(wanted)
        elif wanted > self.shape.usable:
            self._grow(wanted)

    def _shrink(self, wanted: int) -> None:
        """Pull pieces out, the largest first; what is then still to go goes into the balloon."""
        held_on: GuestError | None = None
        for dimm in sorted(self.shape.dimms, key=lambda dimm: -dimm.size):
            if self.shape.total - dimm.size >= wanted:
                self.operation.tell("pull memory out")
                try:
                    self.context.engine.pull_memory(self.run_folder, dimm)
                except GuestError as cause:
                    held_on = cause
                self._look()
        if self.shape.total <= wanted + self.shape.balloon:
            self._inflate(min(wanted, self.shape.total))
            return
        try:
            self._inflate(wanted)
        except GuestError as cause:
            if held_on is not None:
                raise held_on from cause
            self.notes.append(
                f"{format_size(wanted)} comes with its next start: {cause.message}, and no piece of memory to pull out"
            )
            return
        if self.shape.usable > wanted:
            self.notes.append(
                f"the guest did not give back {format_size(self.shape.usable - wanted)} of it; {format_size(wanted)} comes with"
                " its next start"
            )

    def _inflate(self, usable: int) -> None:
        """Have the guest do with ``usable`` bytes. Raises GuestError (``no_balloon``)."""
        if usable == self.shape.usable:
            return
        if (self.run_folder / names.MEMORY).exists():
            raise GuestError(
                "its memory is an image that others map, too: what its guest gives back goes nowhere", code="no_balloon"
            )
        self.operation.tell("ask the guest for memory")
        actual = self.context.engine.balloon(self.run_folder, usable)
        balloon = max(0, self.shape.total - max(actual, usable))
        self.record = with_shape(self.folder, self.record, msgspec.structs.replace(self.shape, balloon=balloon))

    def _grow(self, wanted: int) -> None:
        if self.shape.balloon:
            self._inflate(min(wanted, self.shape.total))
        more = wanted - self.shape.total
        if more <= 0:
            return
        if not self.shape.free_slots or wanted > most_memory(self.shape.memory):
            self.notes.append(f"{format_size(wanted)} comes with its next start: its board has no room for so much more")
            return
        self.operation.tell("plug memory in")
        self._plug(Dimm(os.urandom(4).hex(), self.shape.free_slots[0], more))

    def _plug(self, dimm: Dimm) -> None:
        before = self._ask(_TOTAL, int)
        movable = self.shape.total + dimm.size - self.shape.memory <= _MOST_MOVABLE * self.shape.memory
        way = self._ask(_MOVABLE, str) if movable else None
        former, self.record = (
            self.record,
            with_shape(self.folder, self.record, msgspec.structs.replace(self.shape, dimms=(*self.shape.dimms, dimm))),
        )
        uphold(self.context, self.folder, self.record, former)
        self.context.engine.plug_memory(self.run_folder, dimm)
        self._look()
        policy = way if way in ("offline", "online", "online_kernel", "online_movable") else "online"
        after = self._ask(_USE_MEMORY % ("online_movable" if movable else "online", policy), int)
        if before is None or after is None:
            self.notes.append("whether the guest uses its new memory is not known: nobody answers in it")
        elif (after - before) * 1024 < dimm.size // 2:
            with contextlib.suppress(GuestError):
                self.context.engine.pull_memory(self.run_folder, self.shape.dimms[-1])
            self._look()
            self.notes.append(
                f"{format_size(self.record.spec.memory)} comes with its next start: its guest takes no memory while it runs"
            )

    def _ask(self, script: str, parse: Callable[[str], _T]) -> _T | None:
        """What a script in the guest prints, parsed; None when nobody answers there, or nonsense."""
        from insula.guest.link import open_link

        if not self.answers:
            return None
        with contextlib.suppress(InsulaError, ValueError), open_link(self.run_folder) as link:
            channel, untrusted = link.open("exec", argv=("/bin/sh", "-c", f"{{ {script}; }} 2>/dev/null")), b""
            deadline = time.monotonic() + _SHELL
            while (came := channel.next(max(0.0, deadline - time.monotonic()))) is not None:
                untrusted = (untrusted + came[1])[:_LONGEST]
            return parse(untrusted.decode("ascii", "replace").strip())
        return None


def count_cpus(untrusted: str) -> int:
    """Pure: how many numbers are in a list such as ``0-2,5``. Raises ValueError."""
    total = 0
    for word in untrusted.split(","):
        first, dash, last = word.partition("-")
        low, high = int(first), int(last if dash else first)
        if not 0 <= low <= high < _MOST_NUMBERS:
            raise ValueError(f"not a range of CPUs: {low} to {high}")
        total += high - low + 1
    return total
