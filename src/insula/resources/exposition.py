"""What machines use, as text for Prometheus: the exposition format, version 0.0.4. Pure.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from insula.model.usage import HostUsage, MachineUsage, Usage

Labelled = tuple[dict[str, str], float]


class _Family(NamedTuple):
    """``of``: the values it has for a machine, each with its labels beside the machine's name."""

    name: str
    kind: str
    help: str
    of: Callable[[MachineUsage], Iterable[Labelled]]


def _always(read: Callable[[MachineUsage], float]) -> Callable[[MachineUsage], Iterable[Labelled]]:
    return lambda machine: [({}, read(machine))]


def _disk(*words: tuple[str, str]) -> Callable[[MachineUsage], Iterable[Labelled]]:
    """``words``: the kind of operation, and which field counts it."""

    def read(machine: MachineUsage) -> Iterable[Labelled]:
        if machine.disk is not None:
            for operation, field in words:
                yield {"operation": operation}, getattr(machine.disk, field)

    return read


def _cards(received: str, sent: str) -> Callable[[MachineUsage], Iterable[Labelled]]:
    def read(machine: MachineUsage) -> Iterable[Labelled]:
        for card in machine.cards:
            for direction, field in (("receive", received), ("send", sent)):
                yield {"network": card.network, "mac": card.mac, "direction": direction}, getattr(card, field)

    return read


_MACHINE: Final = (
    _Family("insula_machine_cpu_seconds_total", "counter", "CPU time its processes used.", _always(lambda m: m.cpu.time)),
    _Family(
        "insula_machine_run_queue_wait_seconds", "gauge",
        "Time that the threads it has now could have run and had to wait for a CPU; a thread that ends takes its part along.",
        _always(lambda m: m.cpu.waited),
    ),
    _Family("insula_machine_memory_size_bytes", "gauge", "Memory the guest was given.", _always(lambda m: m.memory.size)),
    _Family(
        "insula_machine_memory_own_bytes", "gauge", "Memory that would be free without the machine.",
        _always(lambda m: m.memory.own),
    ),
    _Family(
        "insula_machine_memory_resident_bytes", "gauge", "Memory its processes have, with what they share with others.",
        _always(lambda m: m.memory.resident),
    ),
    _Family(
        "insula_machine_memory_proportional_bytes", "gauge", "The same, shared parts divided among those who share them.",
        _always(lambda m: m.memory.proportional),
    ),
    _Family(
        "insula_machine_disk_operations_total", "counter", "Operations of the guest on its disks.",
        _disk(("read", "reads"), ("write", "writes")),
    ),
    _Family(
        "insula_machine_disk_bytes_total", "counter", "Bytes the guest read from and wrote to its disks.",
        _disk(("read", "read_bytes"), ("write", "write_bytes")),
    ),
    _Family(
        "insula_machine_disk_operation_seconds_total", "counter", "Time these operations took, summed.",
        _disk(("read", "read_time"), ("write", "write_time")),
    ),
    _Family(
        "insula_machine_network_bytes_total", "counter", "Bytes the machine received and sent.", _cards("received", "sent")
    ),
    _Family(
        "insula_machine_network_packets_total", "counter", "Packets the machine received and sent.",
        _cards("packets_received", "packets_sent"),
    ),
    _Family(
        "insula_machine_network_drops_total", "counter", "Packets from and to the machine that were dropped.",
        lambda m: [({"network": card.network, "mac": card.mac}, card.drops) for card in m.cards],
    ),
    _Family(
        "insula_machine_pressure_seconds_total", "counter", "Time that something in it stood for want of a resource.",
        lambda m: [({"resource": name}, seconds) for name, seconds in sorted(m.pressure.items())],
    ),
)  # fmt: skip


def exposition(usage: Usage) -> str:
    """All of it, ending with a line's end. A family without a value is left out."""
    lines: list[str] = []
    for family in _MACHINE:
        rows = [
            ({"machine": machine.name, **labels}, value) for machine in usage.machines for labels, value in family.of(machine)
        ]
        lines += _family(family.name, family.kind, family.help, rows)
    lines += _host(usage.host)
    return "".join(f"{line}\n" for line in lines)


def _host(host: HostUsage) -> Iterator[str]:
    pressure: list[Labelled] = [({"resource": name}, seconds) for name, seconds in sorted(host.pressure.items())]
    yield from _family("insula_host_cpus", "gauge", "CPUs of the host.", [({}, host.cpus)])
    told = "Memory that new programs could use without swapping."
    yield from _family("insula_host_memory_available_bytes", "gauge", told, [({}, host.memory_available)])
    told = "Time that something on the host stood for want of a resource."
    yield from _family("insula_host_pressure_seconds_total", "counter", told, pressure)


def _family(name: str, kind: str, told: str, rows: list[Labelled]) -> Iterator[str]:
    if not rows:
        return
    yield f"# HELP {name} {told}"
    yield f"# TYPE {name} {kind}"
    for labels, value in rows:
        words = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        yield f"{name}{{{words}}} {_number(value)}" if words else f"{name} {_number(value)}"


def _escaped(text: str) -> str:
    """A label's value: the three characters that would end it, or its line, are written otherwise."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else format(value, ".15g")
