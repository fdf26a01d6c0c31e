"""Shares and limits of real guests: CPU by machine and not by thread, disks, a group removed under them, and the way back."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import insula
from insula.client.local import LocalClient
from insula.client.sdk import Shape
from insula.errors import HostLacks, InsulaError, UsageError
from insula.host import cgroup_trees, cgroups
from insula.host.scheduling import online_cpus
from insula.model.limits import Limits
from insula.model.requests import SetSpares
from insula.operations.limiting import check
from insula.resources.groups import group_of
from insula.store import names
from insula.store.names import Home
from tests.framework.doors import Door, Refused, run_cli
from tests.framework.processes import wait_settled

pytestmark = [
    pytest.mark.limit(400),
    pytest.mark.skipif(not {"cpu", "cpuset"} <= {name for tree in cgroup_trees.usable_trees() for name in tree.controllers},
                       reason="no control groups can be made here"),
]  # fmt: skip

SHAPE: Shape = {"memory": "128M", "network": "none"}
MANY: Shape = {**SHAPE, "cpus": 4}
WINDOW = 2.0  # seconds of CPU time that two machines use together
SPIN = "while :; do :; done"


def group(home: Path, name: str) -> cgroups.Group:
    found = group_of(Home(home), home / "machines" / name / names.RUN)
    assert found is not None
    return found


def used(machine: insula.Machine) -> float:
    """Seconds of CPU that its QEMU has used, as the scheduler counts them."""
    pid = next(pid for name, pid in machine.show().process.items() if name.startswith("qemu"))
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


def spin(machine: insula.Machine, times: int) -> None:
    """Keep ``times`` CPUs of the guest busy from now on."""
    before = used(machine)
    machine.exec(
        "sh", "-c", f"for i in $(seq {times}); do (exec setsid sh -c '{SPIN}') >/dev/null 2>&1 </dev/null & done", check=True
    )
    wait_until(lambda: used(machine) > before + 0.3)


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.05)  # between two looks at the condition


def share(victim: insula.Machine, hog: insula.Machine) -> float:
    """Which part of the CPU time that both use from now on is the victim's."""
    first = used(victim), used(hog)
    wait_until(lambda: used(victim) + used(hog) > sum(first) + WINDOW)
    mine, others = used(victim) - first[0], used(hog) - first[1]
    return mine / (mine + others)


def best_share(victim: insula.Machine, hog: insula.Machine, wanted: float) -> float:
    """The first of three that is as ``wanted``, or the largest: what else the host does may disturb one."""
    found = 0.0
    for _ in range(3):
        found = max(found, share(victim, hog))
        if found >= wanted:
            break
    return found


@pytest.fixture
def two(home: Path, tiny: str) -> Iterator[tuple[insula.Machine, insula.Machine]]:
    """A victim with one CPU and a hog with four, both busy, and both on the same CPU of the host."""
    here, cpu = insula.connect(home), str(online_cpus()[0])
    with here.run(tiny, **SHAPE) as victim, here.run(tiny, cold=True, **MANY) as hog:
        for machine, times in ((hog, 4), (victim, 1)):
            machine.limit(pin=cpu)
            spin(machine, times)
        yield victim, hog


def test_time_is_shared_by_machine_and_by_shares_if_asked(two: tuple[insula.Machine, insula.Machine], home: Path) -> None:
    victim, hog = two
    assert best_share(victim, hog, 0.45) >= 0.45  # 0.2 by thread
    victim.limit(cpu_shares=10240)
    assert best_share(victim, hog, 0.85) >= 0.85
    victim.limit(cpu_shares="none")
    hog.limit(cpu_limit=0.2)
    throttled = group(home, hog.name).read("cpu", "cpu.stat")
    begun, before = time.monotonic(), used(hog)
    wait_until(lambda: used(hog) > before + 0.4)
    wait_until(lambda: group(home, hog.name).read("cpu", "cpu.stat") != throttled)
    assert used(hog) - before <= 0.2 * 1.1 * (time.monotonic() - begun) + 0.05  # a period more at the edge
    told = {hold.limit: (hold.asked, hold.holds) for hold in hog.show().holds}
    assert told["cpu-limit"] == ("0.2", True)


def test_disks_are_held_to_rates(tiny: str, name: str, home: Path) -> None:
    """A lower bound of the time it takes: a busy host makes it no shorter."""
    here = insula.connect(home)
    machine = here.run(tiny, name=name, limits={"disk_rate": "4M"}, **SHAPE)

    def seconds(command: str) -> float:
        machine.exec("sh", "-c", "echo 3 > /proc/sys/vm/drop_caches", check=True)
        begun = time.monotonic()
        machine.exec("sh", "-c", command, check=True)
        return time.monotonic() - begun

    read = "dd if=/dev/vda of=/dev/null bs=64k count=128 skip={} 2>/dev/null"
    assert seconds(read.format(1000)) >= 0.9 * (8 - 0.4) / 4  # at first a tenth of a second's worth is free
    write = "dd if=/dev/zero of=/root/big bs=64k count=64 2>/dev/null; sync"
    assert seconds(write) >= 0.9 * (4 - 0.4) / 4
    machine.limit(disk_rate="none", disk_iops=50)
    machine.restart(force=True)
    assert seconds("dd if=/dev/vda of=/dev/null bs=4k count=100 skip=90000 iflag=direct 2>/dev/null") >= 0.9 * (100 - 5) / 50
    machine.limit(disk_iops=0)
    assert [hold.limit for hold in machine.show().holds] == ["cpu-shares"]


def test_a_group_removed_under_a_machine_is_told_and_made_anew(running: str, home: Path) -> None:
    machine = insula.connect(home).get(running)
    pids = set(machine.show().process.values())
    taken = group(home, running)
    assert all(there == pids for there in taken.members().values())
    for tree in taken.trees:
        for pid in pids:
            (tree.base / "cgroup.procs").write_text(str(pid))
        taken.folder(tree).rmdir()
    assert [(hold.limit, hold.holds) for hold in machine.show().holds] == [("cpu-shares", False)]
    machine.limit(cpu_shares=2048)
    again = group(home, running)
    assert again.trees == taken.trees
    assert all(there == pids for there in again.members().values())
    assert [(hold.limit, hold.asked, hold.holds) for hold in machine.show().holds] == [("cpu-shares", "2048", True)]


def test_limits_go_along_with_a_machine_and_to_its_forks_and_its_group_goes_with_it(
    door: Door, running: str, home: Path, forget: Callable[[str], None]
) -> None:
    """Restore puts another QEMU in its place, suspend and start do; none is ever outside a group, or leaves one."""
    machine, cpu = insula.connect(home).get(running), str(online_cpus()[0])
    machine.limit(pin=cpu, cpu_shares=512, disk_rate="64M", disk_rate_burst="128M", burst_time=3)
    kept = machine.show().limits
    forget(f"{running}-1")
    machine.snapshot("here")
    fork = machine.fork(name=f"{running}-1")[0]
    assert fork.show().limits == kept
    machine.limit(cpu_shares=256)
    machine.snapshots()[0].restore()
    machine.suspend().start()
    for each, shares in ((machine, "256"), (fork, "512")):
        assert {hold.limit: (hold.asked, hold.holds) for hold in each.show().holds} == {
            "cpu-shares": (shares, True), "pin": (cpu, True), "disk-rate": ("64M", True), "disk-rate-burst": ("128M", True),
        }  # fmt: skip
        assert all(there == set(each.show().process.values()) for there in group(home, each.name).members().values())
        for task in Path(f"/proc/{max(each.show().process.values())}/task").iterdir():
            assert os.sched_getaffinity(int(task.name)) == {int(cpu)}
    left = {machine.show().id, fork.show().id}
    fork.delete(force=True)
    door.verb("stop", running, force=True)
    trees = cgroup_trees.usable_trees()
    wait_until(lambda: not any(leaf.startswith(tuple(left)) for leaf in cgroups.leaves(names.home_key(home), trees)))


def test_a_spare_is_held_to_what_its_origin_is_held_to_when_it_is_taken(
    running: str, home: Path, forget: Callable[[str], None]
) -> None:
    machine, name = insula.connect(home).get(running), f"{running}-1"
    forget(name)
    snapshot = machine.snapshot("ready")
    LocalClient(home).do(SetSpares(origin=f"{running}@ready", count=1))
    machine.limit(cpu_shares=300, disk_rate="32M")
    try:
        fork = snapshot.fork(name=name)[0]
        assert {hold.limit: (hold.asked, hold.holds) for hold in fork.show().holds} == {
            "cpu-shares": ("300", True), "disk-rate": ("32M", True),
        }  # fmt: skip
    finally:
        LocalClient(home).do(SetSpares(origin=f"{running}@ready", count=0))


def test_what_cannot_be_changes_nothing(door: Door, shared: str, home: Path) -> None:
    machine = insula.connect(home).get(shared)
    before = machine.show()
    asked: list[tuple[dict[str, str | float], str]] = [
        ({"pin": "4000"}, "beyond_host"),
        ({"cpu_limit": 4000}, "beyond_host"),
        ({"pin": str(online_cpus()[0]), "cpu_limit": 1.5}, "contradictory_limits"),
        ({"disk_iops": 1}, "bad_limit"),
        ({"cpus_limit": 1}, "bad_limit"),
        ({"net_rate": "5"}, "bad_limit"),
        ({}, "bad_limit"),
    ]
    for limits, code in asked:
        with pytest.raises(UsageError) as refusal:
            machine.limit(**limits)
        assert refusal.value.code == code
        with pytest.raises(UsageError):
            insula.connect(home).create("tiny", name="never", limits=limits or {"pin": "x"})
    assert machine.show().holds == before.holds
    with pytest.raises(Refused):
        door.show("never")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can lock a file of a group")
def test_a_change_the_kernel_refuses_in_the_middle_is_taken_back(running: str, home: Path) -> None:
    """One of several files cannot be written; what was written before that goes back."""
    machine, mine, cpu = insula.connect(home).get(running), group(home, running), str(online_cpus()[0])
    machine.limit(pin=cpu, cpu_shares=700)
    folder = mine.where("cpu")
    assert folder is not None
    locked = str(folder / ("cpu.cfs_quota_us" if mine.versions()["cpu"] == 1 else "cpu.max"))
    subprocess.run(["mount", "--bind", locked, locked], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", locked], check=True)
        with pytest.raises(HostLacks) as refusal:
            machine.limit(pin="none", cpu_shares=900, cpu_limit=0.5)
        assert refusal.value.code == "limit_refused"
    finally:
        subprocess.run(["umount", locked], check=True)
    assert (machine.show().limits.cpu_shares, machine.show().limits.cpu_limit) == (700, 0)
    told = {hold.limit: (hold.asked, hold.holds) for hold in machine.show().holds}
    assert told == {"cpu-shares": ("700", True), "pin": (cpu, True)}
    machine.limit(cpu_limit=0.5)


def test_the_command_line_takes_them_at_creation_by_name_and_later(home: Path, tiny: str, name: str, tmp_path: Path) -> None:
    def limits(*words: str) -> dict[str, object]:
        done = run_cli(home, *words)
        assert done.returncode == 0, done.stderr
        found: dict[str, object] = json.loads(run_cli(home, "show", "--json", name).stdout)[0]["limits"]
        return found

    made = limits(
        "create", "-q", "--name", name, "--network", "none", "--cpu-limit", "0.5", "--cpu-burst", "0.25", "--pin", "0", tiny
    )
    assert (made["cpu_limit"], made["cpu_burst"], made["pin"]) == (500, 250, [0])
    assert limits("limit", "--disk-rate", "20M", "--cpu-limit", "none", name) == made | {
        "disk_rate": 20 << 20, "cpu_limit": 0, "cpu_burst": 0,
    }  # fmt: skip
    assert b"disk-rate 20M" in run_cli(home, "show", name).stdout
    for words, code in (
        (["--cpu-limit", "x"], b"no number of CPUs"),
        (["--pin", "4000"], b"this host has no CPU 4000"),
        ([], b"say what to limit"),
        (["--limit-profile", "none-such"], b"none-such"),
    ):
        done = run_cli(home, "limit", *words, name)
        assert done.returncode == 2 or words[:1] == ["--limit-profile"], done
        assert code in done.stderr or b"limits.toml" in done.stderr


def test_a_qemu_that_the_fence_around_its_memory_ends_is_told_as_such(running: str, home: Path) -> None:
    """The fence is pulled in to just above what it uses, and the guest asks for more."""
    machine, mine = insula.connect(home).get(running), group(home, running)
    version = mine.versions().get("memory")
    if version is None or Path("/proc/swaps").read_text().count("\n") > 1:
        pytest.skip("memory cannot be fenced here, or is swapped out instead")
    usage, fence = ("memory.usage_in_bytes", "memory.limit_in_bytes") if version == 1 else ("memory.current", "memory.max")
    mine.write("memory", fence, str(int(mine.read("memory", usage) or 0) + (8 << 20)))
    with contextlib.suppress(InsulaError):
        machine.exec("dd", "if=/dev/zero", "of=/dev/null", "bs=90M", "count=1")
    wait_until(lambda: machine.state == "stopped")
    wait_settled(home / "machines" / running)
    ended = machine.show().ended
    assert ended is not None
    assert (ended.reason, ended.detail) == ("memory-limit", "QEMU took more memory than this machine may have")
    assert machine.start().exec("true").code == 0


def test_what_this_host_can_hold_is_no_reason_to_refuse() -> None:
    check(Limits(pin=online_cpus(), cpu_limit=500, cpu_burst=100, disk_rate=1 << 20))
