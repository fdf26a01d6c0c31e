"""What ``insula doctor`` finds out about this host."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec


class FactState(StrEnum):
    """How well something works here."""

    OK = "ok"
    LIMITED = "limited"  # machines run, and ``costs`` says what they go without
    MISSING = "missing"  # machines cannot run


class Fact(msgspec.Struct, frozen=True):
    """One thing this host can or cannot do, proved by doing it.

    ``detail`` says what was seen. For a shortfall ``costs`` says what one goes without, and ``fix`` is the command that
    mends it, or what else does.
    """

    name: str
    state: FactState
    detail: str
    costs: str = ""
    fix: str = ""


class Attempt(msgspec.Struct, frozen=True):
    """Something that was tried to get out of a machine's jail: ``blocked``, ``open``, or ``untried`` when it could not even be
    begun; ``detail`` says by what."""

    name: str
    result: Literal["blocked", "open", "untried"]
    detail: str


class Report(msgspec.Struct, frozen=True):
    """All facts; ``usable`` when machines can run here at all."""

    facts: list[Fact]
    usable: bool
