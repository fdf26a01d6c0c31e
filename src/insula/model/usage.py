"""What machines use, as `stats` and `top` tell it. Times are in seconds, sizes in bytes, rates per second."""

from __future__ import annotations

import msgspec

from insula.model.status import TrafficStatus


class CpuUsage(msgspec.Struct, frozen=True):
    """``time``: of CPUs, since its QEMU started; ``waited``: that its threads could have run and had to wait for a CPU. ``used``
    and ``waiting``: how many CPUs it had, and how many more it wanted, between the two looks."""

    time: float
    waited: float
    used: float = 0.0
    waiting: float = 0.0


class MemoryUsage(msgspec.Struct, frozen=True):
    """``size`` is what the guest was given. Of its processes: ``own`` would be free without it, ``resident`` is in memory
    with what it shares with others, ``proportional`` the same with shared parts divided among those who share them."""

    size: int
    own: int
    resident: int
    proportional: int = 0


class DiskTraffic(msgspec.Struct, frozen=True):
    """All its disks together. ``read_time`` and ``write_time``: what operations took, summed. ``*_rate``: bytes;
    ``*_operations``: operations; ``*_latency``: what one took on average between the two looks, 0 where there was none."""

    reads: int
    writes: int
    read_bytes: int
    write_bytes: int
    read_time: float
    write_time: float
    read_rate: float = 0.0
    write_rate: float = 0.0
    read_operations: float = 0.0
    write_operations: float = 0.0
    read_latency: float = 0.0
    write_latency: float = 0.0


class NetworkTraffic(msgspec.Struct, frozen=True):
    """All its cards together: bytes, packets, and packets dropped, since they were hung up; ``*_rate``: bytes."""

    received: int
    sent: int
    packets_received: int
    packets_sent: int
    drops: int
    receive_rate: float = 0.0
    send_rate: float = 0.0


class MachineUsage(msgspec.Struct, frozen=True):
    """One machine that runs. ``disk`` is null when its QEMU did not answer in time. ``pressure``: seconds in which something in
    its control group stood for want of ``cpu``, ``memory`` or ``io``; empty where it has none that tells. ``cards``: each of
    its network cards."""

    name: str
    state: str
    cpu: CpuUsage
    memory: MemoryUsage
    disk: DiskTraffic | None
    network: NetworkTraffic
    pressure: dict[str, float]
    cards: list[TrafficStatus]


class HostUsage(msgspec.Struct, frozen=True):
    """The computer: how many CPUs it has, and its ``pressure``, as that of a machine."""

    cpus: int
    memory_available: int
    pressure: dict[str, float]


class Usage(msgspec.Struct, frozen=True):
    """``seconds`` passed between the two looks that rates are of; 0 if there was only one."""

    host: HostUsage
    machines: list[MachineUsage]
    seconds: float = 0.0
