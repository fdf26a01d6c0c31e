"""What CPUs and memory a machine has while it runs, which may be others than it was started with: pieces are plugged in and
pulled.

A machine's spec says what it is to have; that is what it boots with. From then on its board has room for more: as many CPUs
again, in packages of as many as it booted with, and places for pieces of memory. Whatever goes on from its memory later (a
fork, a restore, a start after suspend) must have the very same pieces, so they are written down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from insula.model.spec import MachineSpec
from insula.model.units import GIB, MIB

# Linux on x86 takes memory in blocks of so much, and none that is not whole.
PIECE = 128 * MIB
MEMORY_PLACES = 8

_LEAST_MOST_CPUS = 8
# Between these bounds three times what it has; an unlimited multiple would leave the addresses of small CPUs.
_MEMORY_ROOM = (16 * GIB, 64 * GIB)


class Dimm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A piece of memory that was plugged in. ``name``: 8 hexadecimal digits, never used twice; ``address``: where the guest sees
    it (0: nobody has looked yet)."""

    name: str
    slot: int
    size: int
    address: int = 0


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``cpus`` and ``memory``: what it booted with. ``present``: the numbers of the CPUs that are there, of which its guest was
    asked not to use so many (``parked``); ``dimms``: plugged memory; ``balloon``: bytes that its guest was asked to give back,
    and did."""

    cpus: int
    memory: int
    present: tuple[int, ...]
    dimms: tuple[Dimm, ...] = ()
    balloon: int = 0
    parked: int = 0

    @property
    def used_cpus(self) -> int:
        return max(1, len(self.present) - self.parked)

    @property
    def total(self) -> int:
        """All of its memory, in bytes: what it may come to own."""
        return self.memory + sum(dimm.size for dimm in self.dimms)

    @property
    def usable(self) -> int:
        """What of it the guest has."""
        return self.total - self.balloon

    @property
    def most_cpus(self) -> int:
        return most_cpus(self.cpus)

    def as_found(self, cpus: Sequence[int], pieces: Mapping[str, int]) -> Shape:
        """The same with what there is of it: CPUs by number, pieces of memory by name, with their addresses."""
        dimms = [msgspec.structs.replace(dimm, address=pieces[dimm.name]) for dimm in self.dimms if dimm.name in pieces]
        present = tuple(number for number in cpus if number < self.most_cpus)
        present = present or self.present
        return msgspec.structs.replace(self, present=present, dimms=tuple(dimms), parked=min(self.parked, len(present) - 1))

    @property
    def free_numbers(self) -> list[int]:
        """CPUs that could be plugged in, the best first."""
        return [number for number in range(self.most_cpus) if number not in self.present]

    @property
    def free_slots(self) -> list[int]:
        taken = {dimm.slot for dimm in self.dimms}
        return [slot for slot in range(MEMORY_PLACES) if slot not in taken]


def shape_of(spec: MachineSpec, shape: Shape | None) -> Shape:
    """``shape``, or that of a machine that has what it booted with."""
    return shape or Shape(spec.cpus, spec.memory, tuple(range(spec.cpus)))


def kept_shape(spec: MachineSpec, shape: Shape) -> Shape | None:
    """What need be written down of ``shape``: nothing when the spec says the same."""
    return None if shape == shape_of(spec, None) else shape


def most_cpus(cpus: int) -> int:
    """How many CPUs the board of a machine that boots with ``cpus`` has room for: whole packages of so many.

    Linux refuses a CPU that appears in a package it already knows, unless it recognises the hypervisor.
    """
    return cpus * max(2, -(-_LEAST_MOST_CPUS // cpus))


def most_memory(memory: int) -> int:
    """The end of the memory, in bytes, on the board of a machine that boots with ``memory``; a whole number of GiB."""
    least_room, most_room = _MEMORY_ROOM
    return -(-(memory + min(max(3 * memory, least_room), most_room)) // GIB) * GIB


def check_shape(shape: Shape) -> bool:
    """Whether a machine can have this shape: one that was written by somebody else, perhaps."""
    numbers = list(shape.present)
    sizes = all(dimm.size > 0 and dimm.size % PIECE == 0 and dimm.address % MIB == 0 for dimm in shape.dimms)
    named = all(len(dimm.name) == 8 and set(dimm.name) <= set("0123456789abcdef") for dimm in shape.dimms)
    slots = {dimm.slot for dimm in shape.dimms}
    return (
        sizes
        and named
        and numbers == sorted(set(numbers))
        and numbers[:1] == [0]
        and numbers[-1] < shape.most_cpus
        and len(slots) == len(shape.dimms) == len({dimm.name for dimm in shape.dimms})
        and slots <= set(range(MEMORY_PLACES))
        and all(0 <= dimm.address < 1 << 40 for dimm in shape.dimms)
        and shape.total <= most_memory(shape.memory)
        and 0 <= shape.balloon < shape.total
        and 0 <= shape.parked < len(numbers)
    )
