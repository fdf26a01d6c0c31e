"""The check at the end of a run finds what it should."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from insula.networks.naming import home_key
from tests.framework import leaks

TOKEN = "feedfacecafe"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "_PATIENCE", 0.0)


@pytest.fixture
def sleeper() -> Iterator[list[subprocess.Popen[bytes]]]:
    """A place for children that must be gone afterwards."""
    children: list[subprocess.Popen[bytes]] = []
    yield children
    for child in children:
        child.kill()
        child.communicate()


def _start(children: list[subprocess.Popen[bytes]], *words: str, **environment: str) -> int:
    """A child that waits for the end of its input."""
    program = "import sys; sys.stdout.write('up'); sys.stdout.flush(); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", program, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    children.append(child)
    assert child.stdout is not None
    assert child.stdout.read(2) == b"up"
    return child.pid


def test_nothing_is_found_in_a_clean_folder(tmp_path: Path, quick: None) -> None:
    assert leaks.left_behind(tmp_path / "run", TOKEN, leaks.host_state()) == []


def test_a_child_with_the_token_is_found(tmp_path: Path, quick: None, sleeper: list[subprocess.Popen[bytes]]) -> None:
    pid = _start(sleeper, **{leaks.MARKER: TOKEN})
    found = leaks.left_behind(tmp_path / "run", TOKEN, leaks.host_state())
    assert [line for line in found if line.startswith(f"process {pid}:")]


def test_a_child_that_names_the_folder_is_found(tmp_path: Path, quick: None, sleeper: list[subprocess.Popen[bytes]]) -> None:
    pid = _start(sleeper, str(tmp_path / "run" / "disk"))
    found = leaks.left_behind(tmp_path / "run", TOKEN, leaks.host_state())
    assert [line for line in found if line.startswith(f"process {pid}:")]


def test_another_runs_child_is_not_ours(tmp_path: Path, quick: None, sleeper: list[subprocess.Popen[bytes]]) -> None:
    _start(sleeper, **{leaks.MARKER: "another"})
    assert leaks.left_behind(tmp_path / "run", TOKEN, leaks.host_state()) == []


def test_a_socket_is_found(tmp_path: Path, quick: None) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{folder}/s")
        found = leaks.left_behind(folder, TOKEN, leaks.host_state())
    assert f"socket: {folder}/s" in found


def test_networks_of_homes_elsewhere_are_others_business(tmp_path: Path, quick: None) -> None:
    now, ours, theirs = leaks.host_state(), home_key(tmp_path / "run" / "home"), home_key(tmp_path / "elsewhere")
    (tmp_path / "run" / "home" / "fabric").mkdir(parents=True)
    made = {f"v{ours}", f"v{theirs}"}
    tables = {f"inet insula_{ours}", f"inet insula_{theirs}"}
    later = replace(now, links=now.links | made, tables=now.tables | tables)
    assert leaks.new_names(tmp_path / "run", now, later) == [f"links: v{ours}", f"tables: inet insula_{ours}"]
    later = replace(later, links=later.links | {"ins0"})
    assert leaks.new_names(tmp_path / "run", None, later) == [f"links: v{ours}", f"tables: inet insula_{ours}"]
    assert "links: ins0" in leaks.new_names(tmp_path / "run", now, later)


def test_groups_of_homes_elsewhere_are_others_business(tmp_path: Path, quick: None) -> None:
    now, tree = leaks.host_state(), "/sys/fs/cgroup/cpu/insula"
    (tmp_path / "run" / "home" / "machines").mkdir(parents=True)
    left = f"{tree}/{home_key(tmp_path / 'run' / 'home')}"
    later = replace(now, cgroups=now.cgroups | {left, f"{tree}/{home_key(tmp_path / 'elsewhere')}"})
    assert leaks.new_names(tmp_path / "run", now, later) == [f"cgroups: {left}"]


def test_what_another_process_still_uses_is_no_leak(tmp_path: Path, sleeper: list[subprocess.Popen[bytes]]) -> None:
    now, pid = leaks.host_state(), _start(sleeper)
    made = replace(now, links=now.links | {f"inso{pid}", f"inso{os.getpid()}"}, network_namespaces=frozenset({f"insout{pid}"}))
    assert leaks.new_names(tmp_path, now, made) == [f"links: inso{os.getpid()}"]
    sleeper[-1].kill()
    sleeper[-1].wait()
    assert f"links: inso{pid}" in leaks.new_names(tmp_path, now, made)


def test_what_is_changed_in_the_hosts_network_is_found_whatever_it_is_called(tmp_path: Path) -> None:
    before = replace(leaks.host_state(), sysctls=frozenset({"ipv4/ip_forward=0", "ipv4/conf/eth0/forwarding=0"}))
    turned = frozenset({"ipv4/ip_forward=0", "ipv4/conf/eth0/forwarding=1", "ipv4/conf/new0/forwarding=0"})
    now = replace(before, sysctls=turned, tables=before.tables | {"ip theirs"}, network_namespaces=frozenset({"blue"}))
    assert leaks.new_names(tmp_path, before, now) == [
        "tables: ip theirs", "network namespaces: blue", "sysctls: ipv4/conf/eth0/forwarding=1",
    ]  # fmt: skip
    joined = replace(before, sysctls=frozenset())
    assert leaks.new_names(tmp_path, joined, before) == []
    assert leaks.new_names(tmp_path, before, joined) == []


def test_switches_of_this_network_are_looked_at() -> None:
    assert leaks.sysctls()["ipv4/ip_forward"] in ("0", "1")
    assert leaks.sysctls()["ipv4/conf/lo/forwarding"] in ("0", "1")


def test_what_was_there_before_is_no_leak_and_what_came_is(tmp_path: Path, quick: None) -> None:
    now = leaks.host_state()
    before = replace(now, links=now.links | {"ins0"})
    assert leaks.left_behind(tmp_path / "run", TOKEN, before) == []
    name = f"insula-leak-{os.getpid()}"
    path = Path("/dev/shm") / name
    path.touch()
    try:
        assert leaks.left_behind(tmp_path / "run", TOKEN, now) == [f"shared memory: {name}"]
    finally:
        path.unlink()


def test_a_thread_that_would_hold_python_up_is_found(tmp_path: Path, quick: None) -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="stuck")
    thread.start()
    try:
        assert leaks.left_behind(tmp_path / "run", TOKEN, leaks.host_state()) == ["thread: stuck"]
    finally:
        over.set()
        thread.join()
