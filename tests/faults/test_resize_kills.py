"""`kill -9` of a command that plugs memory in or pulls it out, and of the QEMU it does that to: what the record says is what is
there, and the machine can be saved with it and goes on from that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import insula
from insula.engines.load import load_engine
from insula.model.units import MIB
from insula.store import names
from insula.store.machines import read_machine
from insula.store.names import Home
from tests.faults.rewound import left_over, run_next, settled, strike
from tests.framework.points import Points

pytestmark = [pytest.mark.full, pytest.mark.limit(400)]

_NAME = "resized"
_SMALL, _LARGE = 128 * MIB, 256 * MIB
# Each verb, and the memory before it.
VERBS = {"grow": _SMALL, "shrink": _LARGE}


@pytest.fixture(scope="module")
def resized(home: Path, tiny: str) -> Iterator[insula.Machine]:
    machine = insula.connect(home).create(tiny, name=_NAME, memory="128M", network="none")
    yield machine
    machine.delete(force=True)


def _strike(home: Path, machine: insula.Machine, verb: str, step: str) -> int:
    if machine.state != "running":
        machine.resize(memory=_SMALL)
        machine.start()
    machine.resize(memory=VERBS[verb])

    def check(status: int) -> None:
        state = settled(home, _NAME)
        run_next(home)
        machine.limit(cpu_shares=1024)  # the next verb looks at what there is
        told = machine.show()
        if state == "stopped":
            return
        shape = read_machine(home / "machines" / _NAME).hardware
        found = load_engine("qemu", Home(home)).hardware(home / "machines" / _NAME / names.RUN)
        assert {dimm.name: dimm.address for dimm in shape.dimms} == dict(found.pieces)
        assert told.memory == shape.total in (_SMALL, _LARGE)
        if status == 0:
            assert told.memory == _SMALL + _LARGE - VERBS[verb]
        machine.suspend()
        machine.start()
        assert machine.exec("echo", "goes on", check=True).stdout == "goes on\n"
        assert left_over(home) == []

    return strike(home, step, verb, _NAME, check, "monitor_timeout", "machine_ended")


@pytest.mark.parametrize("verb", VERBS)
def test_a_command_killed_at_any_change(home: Path, resized: insula.Machine, points: Points, verb: str) -> None:
    points.each(lambda change: _strike(home, resized, verb, f"c{change}"), rounds=6, least=15)


@pytest.mark.parametrize("verb", VERBS)
def test_a_qemu_killed_at_any_change(home: Path, resized: insula.Machine, points: Points, verb: str) -> None:
    points.each(lambda change: _strike(home, resized, verb, f"qc{change}"), rounds=3, least=15)
