"""Who suffers from a neighbour, and from which. Pure.

A machine suffers when it waits for something and gets less of it than is fair; who takes most beyond what is fair causes it.
What is fair is decided as among guests at a table (max-min fairness): nobody is given more than it wants, and what is left is
divided by weight among those who want more. A machine that wants little is never the cause, however busy the host; one with more
shares may use more; one that has all for itself disturbs nobody. What programs outside of machines take is not on the table: no
machine is blamed for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Final, Literal

import msgspec

from insula.model.units import KIB, MIB
from insula.resources.metrics import Rates

Resource = Literal["cpu", "disk", "network"]
RESOURCES: Final[tuple[Resource, ...]] = ("cpu", "disk", "network")

# The least that is ever left to a machine: CPUs; bytes of disk a second; bytes sent a second.
FLOOR: Final[Mapping[Resource, float]] = {"cpu": 0.1, "disk": 1.0 * MIB, "network": 125_000.0}

OPERATION: Final = 16 * KIB  # what an operation of a disk counts beside its bytes
SHORT: Final = 0.8  # of its fair part: who gets less is short of it
BEYOND: Final = 1.1  # of its fair part: who takes more is beyond it
_WAIT: Final = 0.1  # CPUs a machine waits for before it suffers
_OURS: Final = 0.4  # of the CPUs in question machines must have, or it is others who are in the way
_UNDER_WAY: Final = 0.3  # operations of a disk, on average, more than what waits for a CPU explains
_SLOW: Final = 0.02  # seconds an operation may take, and what it may beside, by its size
_SLOW_RATE: Final = 20.0 * MIB
_DROPS: Final = 20.0  # packets a second
_DROPPED: Final = 0.01  # of all packets
_SENT: Final = 0.5  # of what reaches a machine that loses packets one must send to be the cause
AT_LIMIT: Final = 0.8  # of a limit: who uses more waits for its own limit, not for others


class Use(msgspec.Struct, frozen=True):
    """What a machine did between two looks. ``cpus``: of its guest. ``cores``: those of the host it may run on, empty for all.
    ``device``: what its disks are on; ``networks``: those it is in. ``limits``: what it is held to, in the words of `FLOOR`."""

    rates: Rates
    cpus: int = 1
    shares: float = 1024.0
    weight: float = 100.0
    cores: frozenset[int] = frozenset()
    device: Hashable = None
    networks: frozenset[str] = frozenset()
    limits: Mapping[Resource, float] = msgspec.field(default_factory=dict)

    def amount(self, resource: Resource) -> float:
        """How much of it the machine used: see `FLOOR`; an operation of a disk counts by itself, too."""
        if resource == "cpu":
            return self.rates.cpu
        if resource == "disk":
            return self.rates.disk_bytes + OPERATION * self.rates.operations
        return self.rates.sent

    def is_at_limit(self, resource: Resource) -> bool:
        limit = self.limits.get(resource, 0.0)
        return limit > 0 and self.amount(resource) >= AT_LIMIT * limit


class Finding(msgspec.Struct, frozen=True):
    """``cause`` takes ``used`` of a resource, where ``fair`` would be fair, and ``sufferers`` go short; see `FLOOR` for units."""

    resource: Resource
    sufferers: tuple[str, ...]
    cause: str
    used: float
    fair: float


def find(uses: Mapping[str, Use], cores: int) -> list[Finding]:
    """Whose need somebody causes, by resource; nothing where nobody suffers, or nobody is to blame. ``cores``: the host's."""
    kinds: tuple[tuple[Resource, Callable[[Use, Use], bool], Callable[[Use], float]], ...] = (
        ("cpu", _share_cores, _wants_cpu),
        ("disk", _share_device, _wants_disk),
        ("network", _share_network, _wants_network),
    )
    found = (
        _judge(resource, {name: uses[name] for name in group}, wants, cores)
        for resource, share, wants in kinds
        for group in _groups(uses, share)
    )
    return [finding for finding in found if finding is not None]


def _judge(resource: Resource, uses: Mapping[str, Use], wants: Callable[[Use], float], cores: int) -> Finding | None:
    used = {name: use.amount(resource) for name, use in uses.items()}
    if resource == "cpu":
        theirs: frozenset[int] = frozenset().union(*(use.cores for use in uses.values()))
        if sum(used.values()) < _OURS * (len(theirs) or cores):
            return None
    wanted = {name: max(used[name], wants(use)) for name, use in uses.items()}
    weights = {name: use.weight if resource == "disk" else use.shares if resource == "cpu" else 1.0 for name, use in uses.items()}
    fair = divide(sum(used.values()), wanted, weights)
    sufferers = tuple(
        name for name, use in sorted(uses.items())
        if used[name] < SHORT * fair[name] and _waits(resource, use)
    )  # fmt: skip
    if not sufferers:
        return None
    beyond = {
        name: used[name] - fair[name]
        for name in uses
        if name not in sufferers
        and used[name] > BEYOND * fair[name]
        and used[name] - fair[name] > FLOOR[resource]
        and (resource != "network" or _reaches(used[name], [uses[sufferer] for sufferer in sufferers]))
    }
    if not beyond:
        return None
    cause = max(sorted(beyond), key=lambda name: beyond[name])
    return Finding(resource, sufferers, cause, used[cause], fair[cause])


def divide(amount: float, wanted: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """``amount`` divided fairly: nobody gets more than it wants, what is left goes by weight to those who want more."""
    fair: dict[str, float] = {}
    left = max(0.0, amount)
    open_ = {name: max(1e-9, weights[name]) for name in wanted}
    for name in sorted(wanted, key=lambda name: wanted[name] / open_[name]):
        part = left * open_[name] / sum(open_.values())
        fair[name] = min(max(0.0, wanted[name]), part)
        left -= fair[name]
        del open_[name]
    return fair


def _waits(resource: Resource, use: Use) -> bool:
    """Whether it waits for others: not for itself, and not for a limit it is held to."""
    if use.is_at_limit(resource):
        return False
    rates = use.rates
    if resource == "cpu":
        return rates.wait >= _WAIT
    if resource == "disk":
        return _is_slow(rates)
    return rates.drops >= _DROPS and rates.drops >= _DROPPED * (rates.packets + rates.drops)


def _is_slow(rates: Rates) -> bool:
    """Whether a disk keeps a machine waiting. Who asks for much at once waits for itself; and an operation is under way for
    longer, too, while QEMU waits for a CPU."""
    if not rates.operations or rates.queue - rates.wait < _UNDER_WAY:
        return False
    size = rates.disk_bytes / rates.operations
    return rates.latency / max(1.0, rates.queue) > _SLOW + size / _SLOW_RATE


def _wants_cpu(use: Use) -> float:
    """As many CPUs as it would run on at once: those of its guest, and one for QEMU itself."""
    wanted = min(use.rates.cpu + use.rates.wait, use.cpus + 1.0)
    limit = use.limits.get("cpu", 0.0)
    return min(wanted, limit) if limit else wanted


def _wants_disk(use: Use) -> float:
    """Nobody can say how much a machine would do that waits for each operation: as much as it may."""
    return math.inf if _waits("disk", use) else 0.0


def _wants_network(use: Use) -> float:
    return math.inf if _waits("network", use) else 0.0


def _reaches(sent: float, sufferers: list[Use]) -> bool:
    """Whether so much is enough to be what one of them loses packets of."""
    return any(sent >= _SENT * use.rates.received for use in sufferers)


def _share_cores(one: Use, other: Use) -> bool:
    return not one.cores or not other.cores or bool(one.cores & other.cores)


def _share_device(one: Use, other: Use) -> bool:
    return one.device == other.device


def _share_network(one: Use, other: Use) -> bool:
    return bool(one.networks & other.networks)


def _groups(uses: Mapping[str, Use], share: Callable[[Use, Use], bool]) -> Iterator[list[str]]:
    """Machines that have to do with each other, directly or by others; who is alone is in nobody's way."""
    left = sorted(uses)
    while left:
        group = [left.pop(0)]
        for member in group:  # which grows meanwhile
            near = [name for name in left if share(uses[member], uses[name])]
            group += near
            left = [name for name in left if name not in near]
        if len(group) > 1:
            yield group
