"""What machines use, in numbers: two samples of one make its rates. Pure.

A counter comes from the kernel or from a QEMU that a guest may have taken over. One that goes back counts as standing still, and
nothing here fails for whatever a number is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from insula.host.counters import Thread

_NANO: Final = 1e9
_MICRO: Final = 1e6


class DiskCounts(msgspec.Struct, frozen=True):
    """Of all disks of a machine, since its QEMU started: operations, bytes, and nanoseconds that operations took, each from
    being asked for to being answered. ``flushes`` are no operations."""

    reads: int = 0
    writes: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    read_ns: int = 0
    write_ns: int = 0
    flushes: int = 0
    flush_ns: int = 0


class CardCounts(msgspec.Struct, frozen=True):
    """Of one network card, since it was hung up. ``received`` is what the machine got."""

    received: int = 0
    sent: int = 0
    packets_received: int = 0
    packets_sent: int = 0
    dropped_received: int = 0
    dropped_sent: int = 0


class Sample(msgspec.Struct, frozen=True):
    """A machine at one instant. ``at`` in seconds of a clock that is never set; ``cpu_ns`` is what all its threads have used,
    those among them that have ended; ``disk`` None: its QEMU did not answer in time. ``pressure``: microseconds, see
    `insula.host.counters.group_pressure`. ``cores``: the CPUs its threads may run on. ``life``: samples of one life of a machine
    have the same."""

    at: float
    life: int = 0
    cpu_ns: int = 0
    threads: Mapping[int, Thread] = msgspec.field(default_factory=dict)
    own: int = 0
    resident: int = 0
    proportional: int = 0
    disk: DiskCounts | None = None
    cards: Mapping[str, CardCounts] = msgspec.field(default_factory=dict)
    pressure: Mapping[str, int] = msgspec.field(default_factory=dict)
    cores: frozenset[int] = frozenset()

    @property
    def waited_ns(self) -> int:
        """By the threads that there are now."""
        return sum(thread.waited for thread in self.threads.values())

    @property
    def network(self) -> CardCounts:
        """Of all its cards."""
        cards = self.cards.values()
        return CardCounts(*(sum(getattr(card, name) for card in cards) for name in CardCounts.__struct_fields__))


class Rates(msgspec.Struct, frozen=True):
    """What a machine used between two samples, per second.

    ``cpu`` and ``wait`` in CPUs: its threads ran on so many at once, and so many of them waited for one. ``*_latency``: seconds
    an operation took on average, 0 where there was none. ``queue``: how many operations were under way on average.
    ``drops``: packets. ``pressure``: the share of the time, 0 to 1. ``disk_known``: whether its QEMU answered both times.
    """

    seconds: float
    cpu: float = 0.0
    wait: float = 0.0
    read_bytes: float = 0.0
    write_bytes: float = 0.0
    reads: float = 0.0
    writes: float = 0.0
    read_latency: float = 0.0
    write_latency: float = 0.0
    queue: float = 0.0
    received: float = 0.0
    sent: float = 0.0
    packets: float = 0.0
    drops: float = 0.0
    pressure: Mapping[str, float] = msgspec.field(default_factory=dict)
    disk_known: bool = False

    @property
    def operations(self) -> float:
        return self.reads + self.writes

    @property
    def disk_bytes(self) -> float:
        return self.read_bytes + self.write_bytes

    @property
    def latency(self) -> float:
        """Seconds a read or write took on average."""
        spent = self.reads * self.read_latency + self.writes * self.write_latency
        return spent / self.operations if self.operations else 0.0

    @property
    def network(self) -> float:
        return self.received + self.sent


def rates(before: Sample, after: Sample) -> Rates:
    """What was used between two samples of the same life of a machine."""
    seconds = max(1e-3, after.at - before.at)
    ran, waited = _scheduled(before.threads, after.threads)
    card = _cards(before.cards, after.cards)
    known = before.disk is not None and after.disk is not None
    disk = _disk(before.disk, after.disk) if before.disk is not None and after.disk is not None else DiskCounts()
    return Rates(
        seconds=seconds,
        cpu=ran / _NANO / seconds,
        wait=waited / _NANO / seconds,
        read_bytes=disk.read_bytes / seconds,
        write_bytes=disk.write_bytes / seconds,
        reads=disk.reads / seconds,
        writes=disk.writes / seconds,
        read_latency=_each(disk.read_ns, disk.reads),
        write_latency=_each(disk.write_ns, disk.writes),
        queue=(disk.read_ns + disk.write_ns) / _NANO / seconds,
        received=card.received / seconds,
        sent=card.sent / seconds,
        packets=(card.packets_received + card.packets_sent) / seconds,
        drops=(card.dropped_received + card.dropped_sent) / seconds,
        pressure={
            name: min(1.0, _grown(before.pressure[name], total) / _MICRO / seconds)
            for name, total in after.pressure.items()
            if name in before.pressure
        },
        disk_known=known,
    )


def _scheduled(before: Mapping[int, Thread], after: Mapping[int, Thread]) -> tuple[int, int]:
    """How long threads ran and waited; one that is new did all of it between the samples, one that has ended tells nothing."""
    fresh = Thread(0, 0)
    pairs = [(before.get(number, fresh), thread) for number, thread in after.items()]
    ran = sum(_grown(former.ran, thread.ran) for former, thread in pairs)
    return ran, sum(_grown(former.waited, thread.waited) for former, thread in pairs)


def _disk(before: DiskCounts, after: DiskCounts) -> DiskCounts:
    return DiskCounts(*(_grown(getattr(before, name), getattr(after, name)) for name in DiskCounts.__struct_fields__))


def _cards(before: Mapping[str, CardCounts], after: Mapping[str, CardCounts]) -> CardCounts:
    """Cards that were hung up in between began at nothing."""
    fresh = CardCounts()
    pairs = [(before.get(key, fresh), card) for key, card in after.items()]
    return CardCounts(
        *(
            sum(_grown(getattr(former, name), getattr(card, name)) for former, card in pairs)
            for name in CardCounts.__struct_fields__
        )
    )


def _grown(before: int, after: int) -> int:
    return max(0, after - before)


def _each(nanoseconds: int, operations: int) -> float:
    return nanoseconds / _NANO / operations if operations else 0.0
