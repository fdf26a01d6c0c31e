"""What machines use: told once, or again and again."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping

import msgspec

from insula.errors import UsageError
from insula.host.counters import host_pressure
from insula.host.memory import available_bytes
from insula.model.network_requests import ShowTraffic
from insula.model.resource_requests import ShowUsage, WatchUsage
from insula.model.status import TrafficStatus
from insula.model.streams import Streams
from insula.model.usage import CpuUsage, DiskTraffic, HostUsage, MachineUsage, MemoryUsage, NetworkTraffic, Usage
from insula.operations.context import Context
from insula.operations.follow import write_all
from insula.operations.operation import Operation
from insula.operations.sampling import Sampler, Seen
from insula.resources.metrics import Rates, Sample, rates

_NANO = 1e9
_MICRO = 1e6
_LEAST, _MOST = 0.1, 3600.0  # seconds between two looks


def show_usage(context: Context, request: ShowUsage, operation: Operation) -> Usage:
    """What machines use. Raises NotFound, UsageError."""
    from insula.operations.traffic import show

    if request.interval:
        check_interval(request.interval)
    with Sampler(context, request.names) as sampler:
        before: dict[str, Seen] = {}
        if request.interval:
            before = sampler.sample()
            operation.wait(request.interval)
        after = sampler.sample(thorough=True)
    cards: dict[str, list[TrafficStatus]] = {}
    for card in show(context, ShowTraffic(names=tuple(dict.fromkeys(request.names))), operation) if after else ():
        cards.setdefault(card.machine, []).append(card)
    return Usage(host(), [_usage(before.get(name), seen, cards.get(name, [])) for name, seen in after.items()], request.interval)


def watch_usage(context: Context, request: WatchUsage, operation: Operation, streams: Streams) -> None:
    """Write what machines use as lines of JSON, each a `Usage`. Raises NotFound, UsageError, Interrupted."""
    check_interval(request.interval)
    with Sampler(context, request.names) as sampler:
        before = sampler.sample()
        told = 0
        while not request.count or told < request.count:
            began = time.monotonic()
            operation.wait(request.interval)
            after = sampler.sample()
            seconds = time.monotonic() - began
            usage = Usage(host(), [_usage(before.get(name), seen, []) for name, seen in after.items()], seconds)
            write_line(streams, msgspec.json.encode(usage))
            before = after
            told += 1


def check_interval(seconds: float) -> None:
    """Raises UsageError (``bad_interval``)."""
    if not _LEAST <= seconds <= _MOST:
        raise UsageError(f"an interval of {seconds:g} s is not possible", code="bad_interval", hint="ask for 0.1 to 3600 seconds")


def write_line(streams: Streams, line: bytes) -> None:
    write_all(streams, line + b"\n")


def host() -> HostUsage:
    pressure = {name: total / _MICRO for name, total in host_pressure().items()}
    memory = 0
    with contextlib.suppress(OSError):
        memory = available_bytes()
    return HostUsage(os.cpu_count() or 1, memory, pressure)


def _usage(before: Seen | None, seen: Seen, cards: list[TrafficStatus]) -> MachineUsage:
    sample = seen.sample
    rate = rates_between(before, seen) or Rates(seconds=1.0)
    return MachineUsage(
        name=seen.folder.name,
        state=str(seen.state),
        cpu=CpuUsage(sample.cpu_ns / _NANO, sample.waited_ns / _NANO, round(rate.cpu, 4), round(rate.wait, 4)),
        memory=MemoryUsage(seen.record.hardware.usable, sample.own, sample.resident, sample.proportional),
        disk=_disk(sample, rate),
        network=_network(sample, rate),
        pressure=_seconds(sample.pressure),
        cards=cards,
    )


def rates_between(before: Seen | None, after: Seen) -> Rates | None:
    """None when both looks are not of one life of a machine."""
    if before is None or before.sample.life != after.sample.life:
        return None
    return rates(before.sample, after.sample)


def _seconds(pressure: Mapping[str, int]) -> dict[str, float]:
    return {name: total / _MICRO for name, total in pressure.items()}


def _disk(sample: Sample, rate: Rates) -> DiskTraffic | None:
    disk = sample.disk
    if disk is None:
        return None
    return DiskTraffic(
        disk.reads, disk.writes, disk.read_bytes, disk.write_bytes, disk.read_ns / _NANO, disk.write_ns / _NANO,
        round(rate.read_bytes, 1), round(rate.write_bytes, 1), round(rate.reads, 2), round(rate.writes, 2),
        round(rate.read_latency, 6), round(rate.write_latency, 6),
    )  # fmt: skip


def _network(sample: Sample, rate: Rates) -> NetworkTraffic:
    card = sample.network
    drops = card.dropped_received + card.dropped_sent
    return NetworkTraffic(
        card.received, card.sent, card.packets_received, card.packets_sent, drops, round(rate.received, 1), round(rate.sent, 1)
    )
