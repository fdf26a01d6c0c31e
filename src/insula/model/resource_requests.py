"""What can be asked about a machine's share of the host: one frozen type per verb, as in requests.py."""

from __future__ import annotations

from insula.model.limits import LimitChanges
from insula.model.requests import Request


class LimitMachine(Request, frozen=True):
    """Change what the machine is held to, at once if it runs, and at every later start. ``cpus`` and ``memory`` (bytes): how
    much of that it has, at its next start, and at once if it runs and its guest goes along; None leaves it."""

    name: str
    changes: LimitChanges = LimitChanges()
    cpus: int | None = None
    memory: int | None = None


class ShowUsage(Request, frozen=True):
    """What machines that run use of the host; none named: all. ``interval``: seconds between two looks, for rates; 0: one look,
    and no rates."""

    names: tuple[str, ...] = ()
    interval: float = 0.0


class GuardMachines(Request, frozen=True):
    """Find out who makes others suffer, and hold that one down for as long; none named: look at all that run. ``once``: until it
    can be judged. ``dry_run``: only say so."""

    names: tuple[str, ...] = ()
    interval: float = 1.0
    once: bool = False
    dry_run: bool = False


class WatchUsage(Request, frozen=True):
    """The same again and again, as lines of JSON, ``count`` times or until the caller has enough."""

    names: tuple[str, ...] = ()
    interval: float = 1.0
    count: int = 0
