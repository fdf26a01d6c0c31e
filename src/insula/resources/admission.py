"""Admission: for how many machines this host's memory is.

A machine may come to own all of its memory, and what QEMU takes beside it: that is its worst case, also that of a fork, which
begins by sharing everything. Few guests ever write to all of it, so counting it whole would refuse what nearly always works;
counting nothing would leave it to the kernel to end a guest that did nothing wrong. So each machine, one that runs and one that
is asked for, is counted with a share of its worst case (half, unless the host's policy says otherwise), or with what it owns
already where that is more. The sum must be available without swapping.
"""

from __future__ import annotations

from typing import Final

import msgspec

from insula.model.units import MIB

DEFAULT: Final = 2
PROCESS: Final = 64 * MIB  # QEMU and its keeper, as they were seen before the guest did anything
TRANSLATED: Final = 128 * MIB  # code that an emulating QEMU keeps translated


def worst_case(memory: int, accelerator: str) -> int:
    """Bytes that a machine with so much memory may come to own by itself."""
    return memory + PROCESS + (TRANSLATED if accelerator == "tcg" else 0)


class Claim(msgspec.Struct, frozen=True):
    """A machine that runs: the bytes it may come to own, and those it owns now."""

    worst: int
    owned: int


class Room(msgspec.Struct, frozen=True):
    """The ``available`` bytes of this host, and the machines that run on it."""

    available: int
    running: list[Claim]
    overcommit: int = DEFAULT

    def counted(self, worst: int) -> int:
        """What a machine is counted with."""
        return worst // self.overcommit

    @property
    def promised(self) -> int:
        """Bytes that those which run are still to get."""
        return sum(max(0, self.counted(claim.worst) - claim.owned) for claim in self.running)

    @property
    def left(self) -> int:
        return max(0, self.available - self.promised)


class Stock(msgspec.Struct, frozen=True):
    """Something of which a host has so much ``there``, may promise it so many ``times``, and has ``promised`` so much."""

    there: int
    times: int
    promised: int

    @property
    def left(self) -> int:
        return max(0, self.there * self.times - self.promised)
