"""What QEMU's monitor answers, held to its shape: a QEMU that a guest has taken over may answer anything.

Shapes as in QEMU's QMP reference, as far as they are of use here. All raise what `Monitor` raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, TypeVar

import msgspec

from insula.engines.qemu.qmp import Monitor, nonsense

_T = TypeVar("_T")
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
_SHORT: Final = {"flat": True}


class Descriptor(msgspec.Struct, frozen=True):
    """``query-fdsets``, one of ``fds``."""

    fd: int
    opaque: str | None = None


class FdSet(msgspec.Struct, frozen=True):
    """``query-fdsets``."""

    number: int = msgspec.field(name="fdset-id")
    fds: list[Descriptor]

    def holds(self, opaque: str) -> bool:
        return any(descriptor.opaque == opaque for descriptor in self.fds)


class _Added(msgspec.Struct, frozen=True):
    number: int = msgspec.field(name="fdset-id")


class Node(msgspec.Struct, frozen=True):
    """``query-named-block-nodes``. ``backing``: what its file says is below it, when anything is."""

    name: str = msgspec.field(name="node-name")
    ro: bool
    backing: str | None = msgspec.field(name="backing_file", default=None)


class _Filter(msgspec.Struct, frozen=True):
    name: str = ""


class _Instance(msgspec.Struct, frozen=True):
    type: str


class RunState(msgspec.Struct, frozen=True):
    """``query-status``: ``status`` is one of QEMU's RunState words."""

    running: bool
    status: str


class DiskStats(msgspec.Struct, frozen=True):
    """``query-blockstats``, the ``stats`` of one: operations, bytes, and nanoseconds that all of a kind took together."""

    rd_operations: Count
    wr_operations: Count
    rd_bytes: Count
    wr_bytes: Count
    rd_total_time_ns: Count
    wr_total_time_ns: Count
    flush_operations: Count = 0
    flush_total_time_ns: Count = 0


class DiskRow(msgspec.Struct, frozen=True):
    """``query-blockstats``, one of the list. ``device``: where on the board it is, empty for what the guest does not see."""

    stats: DiskStats
    device: str = msgspec.field(name="qdev", default="")


class _Migration(msgspec.Struct, frozen=True):
    reason: str = msgspec.field(name="error-desc", default="no reason given")


def ask(monitor: Monitor, shape: type[_T], command: str, arguments: Mapping[str, object] | None = None) -> _T:
    """What QEMU returned, in its shape; more than that is passed over."""
    return shaped(monitor.execute(command, arguments), shape)


def shaped(untrusted: object, shape: type[_T]) -> _T:
    """An answer in its shape; more than that is passed over. Raises InsulaError (``monitor_failed``)."""
    try:
        return msgspec.convert(untrusted, shape)
    except msgspec.ValidationError as cause:
        raise nonsense(str(cause)) from cause


def fd_sets(monitor: Monitor) -> list[FdSet]:
    """All descriptors that were handed over."""
    return ask(monitor, list[FdSet], "query-fdsets")


def fd_set_of(monitor: Monitor, opaque: str) -> FdSet:
    """That which holds what was handed over under this name."""
    for known in fd_sets(monitor):
        if known.holds(opaque):
            return known
    raise nonsense(f"it has no {opaque}")


def add_fd(monitor: Monitor, descriptor: int, arguments: Mapping[str, object]) -> int:
    """Hand a descriptor over; the number of its set."""
    return shaped(monitor.execute("add-fd", arguments, [descriptor]), _Added).number


def block_nodes(monitor: Monitor) -> list[Node]:
    return ask(monitor, list[Node], "query-named-block-nodes", _SHORT)


def card_names(monitor: Monitor) -> list[str]:
    """What network cards there are."""
    return [card.name for card in ask(monitor, list[_Filter], "query-rx-filter")]


def is_migrating(monitor: Monitor) -> bool:
    """Whether something is there that could be yanked out of a migration."""
    return any(instance.type == "migration" for instance in ask(monitor, list[_Instance], "query-yank"))


def why_not_migrated(monitor: Monitor) -> str:
    return ask(monitor, _Migration, "query-migrate").reason
