"""What the guard saw and did. Amounts: CPUs; bytes of disk a second, each operation 16 KiB more; bytes sent a second."""

from __future__ import annotations

import msgspec


class Disturbance(msgspec.Struct, frozen=True):
    """``cause`` takes ``used`` of a ``resource`` (cpu, disk, network), where ``fair`` would be fair, and ``sufferers`` go short.
    ``proven``: it has been so for several looks running."""

    resource: str
    cause: str
    sufferers: list[str]
    used: float
    fair: float
    proven: bool = False


class GuardStep(msgspec.Struct, frozen=True):
    """What was done to a ``machine``: ``hold`` (to ``cap``), ``ease`` (to a higher one), ``release``. With ``problem`` it could
    not be done, and why."""

    machine: str
    resource: str
    action: str
    cap: float = 0.0
    used: float = 0.0
    sufferers: list[str] = []
    problem: str | None = None


class GuardLook(msgspec.Struct, frozen=True):
    """One look: how many machines ran, at what time (seconds since 1970). ``held``: what is held down after it, by machine and
    resource. ``dry_run``: nothing was done, ``steps`` are what would have been."""

    at: float
    machines: int
    disturbances: list[Disturbance]
    steps: list[GuardStep]
    held: dict[str, dict[str, float]]
    dry_run: bool = False
