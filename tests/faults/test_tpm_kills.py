"""`kill -9` of a command at every step of what begins, copies or exchanges a TPM: none is left without its machine, none half
made, and what it keeps is there."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import insula
from insula.store import names
from tests.faults.rewound import left_over, settled, victim
from tests.framework.doors import run_cli
from tests.framework.points import Points
from tests.framework.processes import inhabitants
from tests.framework.tpm import define, read, write

pytestmark = [pytest.mark.guest, pytest.mark.full, pytest.mark.limit(900)]

_PATIENCE = 20.0


@pytest.fixture
def secured(home: Path, tiny: str, name: str) -> Iterator[insula.Machine]:
    """A running machine whose TPM keeps 8 bytes, also in its snapshot `base`."""
    machine = insula.connect(home).run(tiny, name=name, memory="128M", network="none", tpm=True)
    define(machine)
    write(machine, b"former..")
    machine.snapshot("base")
    yield machine
    for each in _all(home, machine):
        each.delete(force=True)


def _all(home: Path, machine: insula.Machine) -> list[insula.Machine]:
    here = insula.connect(home)
    return [here.get(status.name) for status in here.list() if status.name.startswith(machine.name)]


def _check(home: Path, machine: insula.Machine) -> None:
    for each in _all(home, machine):
        run_cli(home, "snapshot", "delete", "--json", f"{each.name}@nothing")  # a verb that finishes the dead one's work
        state = settled(home, each.name)
        assert (state, each.status.problem) in (("running", None), ("stopped", None), ("suspended", None))
        place = home / "machines" / each.name / names.TPM
        assert inhabitants(place) if state == "running" else _is_left(place)
        if each.state == "running":  # a guest that still boots is told who it is by a later verb, which this is
            run_cli(home, "exec", "--wait", f"{_PATIENCE:g}", each.name, "--", "true")
            run_cli(home, "snapshot", "delete", "--json", f"{each.name}@nothing")
    assert left_over(home) == []


def _is_left(place: Path) -> bool:
    """Whether a TPM's room, if somebody was in it just now, is empty soon."""
    for pid in inhabitants(place):
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            ended = select.select([descriptor], [], [], _PATIENCE)[0]
            os.close(descriptor)
            if not ended:
                return False
    return True


@pytest.mark.parametrize("verb", ["start", "restore-discard", "fork", "suspend", "clone"])
def test_a_command_that_is_killed_leaves_no_tpm_alone(home: Path, secured: insula.Machine, points: Points, verb: str) -> None:
    kind = "c" if verb == "start" else ""  # what starts a process is looked at closely
    points.each(lambda step: _strike(home, secured, verb, f"{kind}{step}"), rounds=6 if kind else 3, least=1)
    assert read(secured.start()) == b"former.."


def _strike(home: Path, secured: insula.Machine, verb: str, step: str) -> int:
    """One round; how many steps came, but of those that only wait for the guest."""
    if verb in ("start", "clone"):
        secured.stop(force=True)
    elif secured.state != "running":
        secured.start()
    status, steps, error = victim(home, step, verb, secured.name)
    try:
        assert (status, error) in ((0, ""), (-signal.SIGKILL, ""))
        _check(home, secured)
        for each in _all(home, secured):
            if each.name != secured.name:
                assert read(each.start()) == b"former.."
                each.delete(force=True)
    except BaseException as failure:
        failure.add_note(f"{verb} killed at {steps[-3:]}")
        raise
    return next((number for number, step in enumerate(steps) if step.startswith("socket.connect")), len(steps))
