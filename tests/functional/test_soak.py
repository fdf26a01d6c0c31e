"""Hours of use in minutes: what is done many times costs the last time what it cost the first."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import insula
from insula.store import events
from tests.framework.points import Points
from tests.framework.processes import processes_of

# Root: what a keeper has open, and its memory, the kernel shows to nobody else.
pytestmark = [pytest.mark.full, pytest.mark.root, pytest.mark.limit(1200)]

_PATIENCE = 10.0  # seconds in which what a command left may go


def _settled(value: Callable[[], int], most: int, what: str) -> None:
    """Wait until it is at most that: a connection that was closed is noticed a moment later."""
    deadline = time.monotonic() + _PATIENCE
    while (now := value()) > most:
        assert time.monotonic() < deadline, f"{what}: {now}, and at most {most} was expected"
        time.sleep(0.05)  # between two looks at the condition


def _memory(pid: int) -> int:
    """KiB that are a process's alone. Its share of program pages depends on who else runs the same, so it is only bounded."""
    sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE))
    assert int(sizes["Pss"]) < 1024, sizes
    return int(sizes["Anonymous"])


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _event_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("events.jsonl*"))


def test_a_keeper_does_not_grow_by_what_it_served(home: Path, running: str, tmp_path: Path, points: Points) -> None:
    machine, folder = insula.connect(home).get(running), home / "machines" / running
    (tmp_path / "file").write_bytes(os.urandom(300_000))

    def serve() -> None:
        assert machine.exec("cat", input=b"in" * 1000).stdout_bytes == b"in" * 1000

    for _ in range(10):  # what is allocated once is allocated now
        serve()
    machine.put([tmp_path / "file"], "/root/file")
    keeper = processes_of(folder)["keeper"]
    memory, descriptors, files, noted = _memory(keeper), _descriptors(keeper), _files(home), _event_bytes(folder)
    processes = machine.exec("sh", "-c", "ls -d /proc/[0-9]*/exe | wc -l").stdout
    for number in range(points.many(100, 400)):
        serve()
        if number % 20 == 0:
            machine.put([tmp_path / "file"], "/root/file")
            machine.get(["/root/file"], tmp_path / f"back-{number}")
    _settled(lambda: _descriptors(keeper), descriptors, "descriptors of the keeper")
    _settled(lambda: _memory(keeper), memory + 64, "KiB of the keeper's memory")
    assert _files(home) == files
    assert _event_bytes(folder) - noted < 4096, "commands are no events of the machine"
    _settled(
        lambda: int(machine.exec("sh", "-c", "ls -d /proc/[0-9]*/exe | wc -l").stdout), int(processes), "processes in the guest"
    )


def test_lives_leave_nothing_that_adds_up(home: Path, running: str, tmp_path: Path, points: Points) -> None:
    rounds = points.many(10, 60)
    machine, folder = insula.connect(home).get(running), home / "machines" / running
    (tmp_path / "file").write_bytes(b"content")
    machine.stop().start()  # the first life was no boot, and is not like the others
    first: dict[str, int] = {}
    files: set[str] = set()
    for number in range(rounds):
        assert machine.exec("echo", str(number)).stdout == f"{number}\n"
        machine.put([tmp_path / "file"], "/root/file")
        machine.pause()
        machine.resume()
        processes = processes_of(folder)
        looks = {f"{what} of the {who}": partial(look, processes[who]) for who in ("keeper", "porter")
                 for what, look in (("KiB", _memory), ("descriptors", _descriptors))}  # fmt: skip
        first = first or {what: look() for what, look in looks.items()}
        for what, look in looks.items():
            _settled(look, first[what] + (64 if what.startswith("KiB") else 0), f"{what} in life {number}")
        machine.stop()
        assert not (folder / "run").exists()
        files = files or _files(home)
        assert _files(home) == files, f"after life {number}"
        machine.start()
    assert machine.exec("cat", "/root/file").stdout == "content"
    assert _event_bytes(folder) <= 2 * events.MOST_BYTES
    told = [event["event"] for event in machine.events()]
    assert told.count("started") == rounds + 2, "every life is told"
    assert (home / "machines" / running / "console.log").stat().st_size < 1 << 20
