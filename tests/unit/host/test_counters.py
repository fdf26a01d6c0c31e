"""What the kernel tells of processes: of real ones, and of those that have ended."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.host.counters import Process, group_mount, group_pressure, host_pressure, open_processes

_SPIN = (
    "import sys, threading\nthreading.Thread(target=sys.stdin.read).start()\nfor _ in range(300000): pass\nprint(1, flush=True)"
)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """It has computed something, and waits in two threads."""
    with subprocess.Popen(["python3", "-S", "-c", _SPIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process
        process.communicate()


def test_a_process_and_its_threads(child: subprocess.Popen[bytes]) -> None:
    with Process(child.pid) as process:
        threads = process.threads()
        assert len(threads) == 2
        assert threads[child.pid].ran > 1_000_000, "it has counted to 300000"
        assert all(thread.ran >= 0 and thread.waited >= 0 for thread in threads.values())
        assert process.cpu_time() <= sum(thread.ran for thread in threads.values()) + 50_000_000
        own, resident = process.memory()
        assert 0 < own < resident
        assert 0 < process.proportional() <= resident + (1 << 20)
        assert process.cores() == os.sched_getaffinity(child.pid)


def test_one_that_has_ended_is_told_as_such_and_never_mistaken(child: subprocess.Popen[bytes]) -> None:
    with Process(child.pid) as process:
        child.communicate()
        child.wait()
        for read in (process.threads, process.cpu_time, process.memory, process.proportional, process.group):
            with pytest.raises(ProcessLookupError):
                read()
    with pytest.raises(ProcessLookupError):
        Process(child.pid)
    assert open_processes([child.pid]) == []


def test_the_hosts_pressure_only_grows() -> None:
    before = host_pressure()
    if not before:
        pytest.skip("this kernel counts no pressure")
    assert set(before) == {"cpu", "memory", "io"}
    after = host_pressure()
    assert all(after[name] >= total for name, total in before.items())


def test_pressure_of_a_group(tmp_path: Path) -> None:
    (tmp_path / "cpu.pressure").write_text(
        "some avg10=1.00 avg60=0.50 avg300=0.10 total=4711\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=815\n"
    )
    (tmp_path / "io.pressure").write_text("nonsense\n")
    assert group_pressure(tmp_path) == {"cpu": 4711}
    assert group_pressure(tmp_path / "gone") == {}


def test_groups_are_where_the_kernel_says() -> None:
    mount = group_mount()
    if mount is None:
        pytest.skip("this host has no control groups of version 2")
    assert (mount / "cgroup.procs").exists()
    with Process(os.getpid()) as process:
        assert (mount / process.group()).is_dir()
