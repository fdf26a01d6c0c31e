"""What limits come to: golden lists for both versions, and what is said where there is no group."""

from __future__ import annotations

import pytest

from insula.model.limits import Limits
from insula.model.network import Rates
from insula.model.units import GIB, MIB
from insula.resources.shares import fence, hold_of, nice_of, parent_weight, settings, weight_of, wished
from insula.resources.throttles import throttle_limits

ALL_V1 = dict.fromkeys(("cpu", "cpuacct", "cpuset", "memory", "blkio", "pids"), 1)
ALL_V2 = dict.fromkeys(("cpu", "cpuset", "memory", "io", "pids"), 2)
LIMITS = Limits(pin=(0, 2, 3), cpu_shares=2048, cpu_limit=1500, cpu_burst=250, io_weight=50)


def written(limits: Limits, versions: dict[str, int]) -> list[tuple[str, str]]:
    return [(setting.file, setting.value) for setting in settings(limits, 512 * MIB, versions, "0-3")]


def test_version_1_in_full() -> None:
    assert written(LIMITS, ALL_V1) == [
        ("cpuset.cpus", "0,2-3"),
        ("cpu.shares", "2048"),
        ("cpu.cfs_burst_us", "0"),
        ("cpu.cfs_period_us", "100000"),
        ("cpu.cfs_quota_us", "150000"),
        ("cpu.cfs_burst_us", "25000"),
        ("memory.limit_in_bytes", str(512 * MIB + 16 * MIB + 768 * MIB)),
        ("pids.max", "1024"),
        ("blkio.bfq.weight", "50"),
    ]


def test_cpus_of_its_own_are_all_it_runs_on() -> None:
    own = Limits(isolate=(1, 2))
    assert ("cpuset.cpus", "1-2") in written(own, ALL_V1)
    assert ("cpuset.cpus", "1-2") in written(own, ALL_V2)
    assert own.inherited == Limits()
    assert hold_of("isolate", own, ALL_V1, root=True, autogroup=True).holds
    assert not hold_of("isolate", own, {}, root=True, autogroup=True).holds


def test_version_2_in_full() -> None:
    assert written(LIMITS, ALL_V2) == [
        ("cpuset.cpus", "0,2-3"),
        ("cpu.weight", "200"),
        ("cpu.max.burst", "0"),
        ("cpu.max", "150000 100000"),
        ("cpu.max.burst", "25000"),
        ("memory.high", str(fence(512 * MIB) - 64 * MIB)),
        ("memory.max", str(fence(512 * MIB))),
        ("pids.max", "1024"),
        ("io.bfq.weight", "50"),
        ("io.weight", "50"),
    ]


def test_without_limits_everything_is_said_to_be_as_it_is_for_all() -> None:
    assert ("cpu.max", "max 100000") in written(Limits(), ALL_V2)
    assert ("cpu.cfs_quota_us", "-1") in written(Limits(), ALL_V1)
    assert ("cpuset.cpus", "0-3") in written(Limits(), ALL_V1)
    assert ("cpuset.cpus", "0-3") in written(Limits(), ALL_V2)
    wishes = {setting.wish for setting in settings(Limits(), GIB, ALL_V1, "0-3")}
    assert "io_weight" not in wishes  # so a kernel without the means is no reason not to start
    assert "cpu_burst" not in wishes


def test_only_what_governs_the_group_is_written() -> None:
    assert written(LIMITS, {"pids": 1}) == [("pids.max", "1024")]
    assert written(LIMITS, {}) == []


@pytest.mark.parametrize(("shares", "weight"), [(1024, 100), (2, 1), (262_144, 10_000), (10_240, 1000), (512, 50)])
def test_shares_of_one_version_are_those_of_the_other(shares: int, weight: int) -> None:
    assert weight_of(shares) == weight


def test_a_machine_weighs_as_one_process_of_the_host() -> None:
    assert parent_weight(0, 1) == ("cpu.shares", "1024")
    assert parent_weight(3, 1) == ("cpu.shares", "3072")
    assert parent_weight(3, 2) == ("cpu.weight", "300")
    assert parent_weight(1000, 2) == ("cpu.weight", "10000")


@pytest.mark.parametrize(("shares", "nice"), [(1024, 0), (102, 10), (2, 19), (262_144, -20), (820, 1)])
def test_niceness_comes_as_near_as_it_can(shares: int, nice: int) -> None:
    assert nice_of(shares) == nice


def test_what_is_not_as_for_all_others_is_wished() -> None:
    assert wished(Limits()) == []
    assert wished(Limits(burst_time=5)) == []
    assert wished(Limits(cpu_shares=1, net=Rates(up=8000))) == ["cpu_shares", "net"]


def holds(
    field: str, limits: Limits, versions: dict[str, int], *, root: bool = False, autogroup: bool = True
) -> tuple[bool, str]:
    hold = hold_of(field, limits, versions, root=root, autogroup=autogroup)
    return hold.holds, hold.by


def test_with_groups_the_group_holds() -> None:
    for field in ("pin", "cpu_shares", "cpu_limit"):
        assert holds(field, LIMITS, ALL_V1) == (True, "control group, version 1")


def test_without_groups_threads_are_told_what_they_can_be_and_the_rest_is_refused() -> None:
    assert holds("pin", LIMITS, {}) == (True, "the affinity of its threads")
    assert holds("cpu_shares", Limits(cpu_shares=100), {}) == (True, "the niceness of its session (autogroup)")
    assert holds("cpu_shares", Limits(cpu_shares=100), {}, autogroup=False) == (True, "the niceness of its threads")
    held, why = holds("cpu_shares", LIMITS, {})
    assert not held
    assert "takes a control group" in why
    assert holds("cpu_shares", LIMITS, {}, root=True)[0]
    held, why = holds("cpu_limit", LIMITS, {})
    assert not held
    assert "systemd-run --user --scope -p Delegate=yes" in why
    assert not holds("io_weight", LIMITS, {})[0]
    for field in ("disk_rate", "disk_iops"):
        assert holds(field, LIMITS, {}) == (True, "QEMU's throttle")


def test_a_throttle_is_said_in_full_so_that_the_former_one_goes() -> None:
    none = {"bps-total": 0, "bps-total-max": 0, "bps-total-max-length": 1}
    none |= {"iops-total": 0, "iops-total-max": 0, "iops-total-max-length": 1}
    assert throttle_limits(Limits(burst_time=7)) == none
    asked = throttle_limits(Limits(disk_rate=20 * MIB, disk_rate_burst=100 * MIB, disk_iops=500, burst_time=5))
    assert asked == none | {
        "bps-total": 20 * MIB, "bps-total-max": 100 * MIB, "bps-total-max-length": 5, "iops-total": 500,
    }  # fmt: skip
