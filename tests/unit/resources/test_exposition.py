"""Text for Prometheus: read back by a strict reader it says what was said, whatever a name is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from insula.model.status import TrafficStatus
from insula.model.usage import CpuUsage, DiskTraffic, HostUsage, MachineUsage, MemoryUsage, NetworkTraffic, Usage
from insula.resources.exposition import exposition
from tests.framework.prometheus import parse

_HOST = HostUsage(2, 1 << 30, {"cpu": 1.5, "io": 0.0})


def machine(name: str, network: str = "nat", disk: DiskTraffic | None = None) -> MachineUsage:
    return MachineUsage(
        name=name,
        state="running",
        cpu=CpuUsage(12.5, 0.25),
        memory=MemoryUsage(1 << 29, 3, 5, 4),
        disk=disk,
        network=NetworkTraffic(1, 2, 3, 4, 5),
        pressure={"cpu": 0.125},
        cards=[TrafficStatus(name, network, "52:54:00:00:00:01", 1000, 2000, 10, 20, 3)],
    )


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4, unique=True), st.text())
def test_any_name_comes_back_as_it_was(names: list[str], network: str) -> None:
    told = parse(exposition(Usage(_HOST, [machine(name, network) for name in names])))
    assert set(told["insula_machine_cpu_seconds_total"].values) == {frozenset({("machine", name)}) for name in names}
    sent = told["insula_machine_network_bytes_total"]
    assert sent.value(machine=names[0], network=network, mac="52:54:00:00:00:01", direction="send") == 2000


def test_values_are_what_they_were() -> None:
    disk = DiskTraffic(7, 8, 4096, 1 << 60, 0.5, 1e-9)
    told = parse(exposition(Usage(_HOST, [machine("web", disk=disk)])))
    assert told["insula_machine_cpu_seconds_total"].value(machine="web") == 12.5
    assert told["insula_machine_disk_bytes_total"].value(machine="web", operation="write") == 1 << 60
    assert told["insula_machine_disk_operation_seconds_total"].value(machine="web", operation="write") == 1e-9
    assert told["insula_machine_memory_proportional_bytes"].value(machine="web") == 4
    assert told["insula_machine_pressure_seconds_total"].value(machine="web", resource="cpu") == 0.125
    assert told["insula_host_cpus"].value() == 2
    assert told["insula_host_pressure_seconds_total"].value(resource="cpu") == 1.5


def test_what_is_not_known_is_not_told() -> None:
    told = parse(exposition(Usage(_HOST, [machine("web")])))
    assert not any(name.startswith("insula_machine_disk") for name in told)
    assert set(parse(exposition(Usage(_HOST, [])))) == {
        "insula_host_cpus",
        "insula_host_memory_available_bytes",
        "insula_host_pressure_seconds_total",
    }
