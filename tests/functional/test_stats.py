"""What machines use, held against what their guests did."""

from __future__ import annotations

import json
from pathlib import Path

import insula
from insula.model.units import MIB
from tests.framework.doors import run_cli
from tests.framework.prometheus import parse

_SIZE = 8 * MIB


def _stats(home: Path, *words: str) -> dict:
    found: dict = json.loads(_output(home, "--json", *words))
    return found


def _output(home: Path, *words: str) -> bytes:
    done = run_cli(home, "stats", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _told(home: Path, name: str) -> dict:
    """Its disk is told as soon as its QEMU answers in time, which on a busy host it may not."""
    while True:
        (machine,) = _stats(home, name)["machines"]
        if machine["disk"] is not None:
            return dict(machine)


def test_what_a_guest_did_is_counted(home: Path, running: str) -> None:
    before = _told(home, running)
    machine = insula.connect(home).get(running)
    machine.exec("sh", "-c", f"dd if=/dev/zero of=/root/file bs=64k count={_SIZE >> 16} && sync", check=True)
    after = _told(home, running)
    assert after["disk"]["write_bytes"] - before["disk"]["write_bytes"] >= _SIZE
    assert after["disk"]["writes"] > before["disk"]["writes"]
    assert after["disk"]["write_time"] > before["disk"]["write_time"]
    assert after["cpu"]["time"] > before["cpu"]["time"]
    assert 0 < after["memory"]["own"] <= after["memory"]["resident"] + MIB
    assert after["memory"]["size"] == 128 * MIB
    usage = machine.usage()
    assert usage is not None
    assert usage.cpu.time >= after["cpu"]["time"]
    told = parse(_output(home, "--prometheus", running).decode())
    assert told["insula_machine_cpu_seconds_total"].value(machine=running) >= usage.cpu.time
    assert told["insula_machine_memory_size_bytes"].value(machine=running) == 128 * MIB


def test_a_guest_that_computes_is_told_from_one_that_waits(home: Path, running: str) -> None:
    """In the same seconds: it uses a CPU, or waits for one, for as long as it computes, and for nearly nothing before."""
    machine = insula.connect(home).get(running)
    machine.exec("sh", "-c", "(while :; do :; done) >/dev/null 2>&1 & echo $! > /tmp/busy", check=True)
    while (busy := machine.usage(interval=1.0)) is not None and busy.cpu.used + busy.cpu.waiting < 0.5:
        assert machine.exec("sh", "-c", "kill -0 $(cat /tmp/busy)").code == 0  # a wait is counted when it is over: look again
    machine.exec("sh", "-c", "kill $(cat /tmp/busy)", check=True)
    assert busy is not None
    while (calm := machine.usage(interval=1.0)) is not None and calm.cpu.used + calm.cpu.waiting > 0.5:
        pass
    assert calm is not None


def test_only_machines_that_run_are_told_of(home: Path, running: str) -> None:
    insula.connect(home).get(running).stop(force=True)
    assert _stats(home, running)["machines"] == []
    assert insula.connect(home).get(running).usage() is None
    assert run_cli(home, "stats", "nobody").returncode == 1
    assert run_cli(home, "stats", "--prometheus", "--json").returncode == 2
    assert run_cli(home, "stats", "--interval", "0.01").returncode == 2
