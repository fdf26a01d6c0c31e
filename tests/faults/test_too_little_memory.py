"""Too little memory for what is asked: refused before anything is done, with what is asked for, what is left and what fits."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import insula
from insula.client.local import LocalClient
from insula.errors import HostLacks
from insula.model.requests import ForkMachine, SetSpares
from insula.model.units import MIB
from insula.operations import admit
from insula.operations.context import Context
from insula.operations.operation import Operation
from insula.resources.admission import Room, worst_case
from insula.resources.policy import OVERCOMMIT
from insula.store.names import Home
from tests.faults.rewound import left_over
from tests.framework.doors import run_cli

pytestmark = [pytest.mark.guest, pytest.mark.limit(120)]

Give = Callable[[int], None]


@pytest.fixture
def machine(home: Path, running: str) -> Iterator[insula.Machine]:
    machine = insula.connect(home).get(running)
    yield machine
    for status in insula.connect(home).list():
        if status.name.startswith(f"{running}-"):
            insula.connect(home).get(status.name).delete(force=True)


@pytest.fixture
def give(home: Path, monkeypatch: pytest.MonkeyPatch) -> Give:
    """Call it and this host has so many bytes left, beside what the machines that run may yet take."""
    context = Context(Home(home))

    def change(left: int) -> None:
        promised = Room(0, list(admit._claims(admit._alive(context)).values())).promised
        monkeypatch.setattr(admit, "available_bytes", lambda: promised + left)

    return change


def _counted(home: Path, machine: insula.Machine) -> int:
    record = json.loads((home / "machines" / machine.name / "machine.json").read_bytes())
    return worst_case(record["spec"]["memory"], record["board"]["accelerator"]) // 2


def _there(home: Path) -> list[str]:
    return sorted(os.listdir(home / "machines"))


def _spare(home: Path, origin: str, count: int) -> None:
    LocalClient(home).do(SetSpares(origin=origin, count=count))


def _ready(home: Path) -> list[int]:
    return [one["ready"] for one in json.loads(run_cli(home, "spare", "list", "--json").stdout)]


def test_what_a_machine_owns_is_seen(home: Path, machine: insula.Machine) -> None:
    """A guest that writes to 48 MiB of its memory makes them its machine's own, and no other's."""
    identity = machine.show().id
    before = admit._claims(admit._alive(Context(Home(home))))
    assert before[identity].worst >= 192 * MIB
    machine.exec("sh", "-c", "head -c 50331648 /dev/zero >/root/much", check=True)
    after = admit._claims(admit._alive(Context(Home(home))))
    assert after[identity].owned - before[identity].owned > 40 * MIB
    assert all(abs(after[other].owned - before[other].owned) < 40 * MIB for other in before if other != identity)


def test_a_thousand_forks_are_refused_and_it_is_said_how_many_fit(home: Path, machine: insula.Machine) -> None:
    before = _there(home)
    done = run_cli(home, "fork", "-n", "1000", "--json", machine.name)
    error = json.loads(done.stderr.splitlines()[-1])
    assert (done.returncode, error["code"]) == (125, "no_memory")
    assert error["message"].startswith("1000 forks need ")
    assert "GiB of memory; this host has " in error["message"]
    assert error["message"].endswith(" left")
    assert 20 < int(error["hint"].split()[0]) < 1000
    assert "would fit: each is counted with " in error["hint"]
    assert _there(home) == before
    assert machine.exec("true").code == 0
    assert left_over(home) == []


def test_as_many_forks_as_it_says_do_fit(home: Path, machine: insula.Machine, give: Give) -> None:
    before = _there(home)
    give(_counted(home, machine) * 5 // 2)
    with pytest.raises(HostLacks) as error:
        machine.fork(20)
    fit = int((error.value.hint or "").split()[0])
    assert fit in (2, 3)  # its guest may have come to own more meanwhile, which is counted less then
    assert _there(home) == before
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(child) for child in machine.fork(2)]
        assert [child.exec("true").code for child in children] == [0, 0]
    give(_counted(home, machine) // 2)
    with pytest.raises(HostLacks, match="the fork needs") as error:
        machine.fork()
    assert "none would fit" in (error.value.hint or "")
    assert "stop other machines first" in (error.value.hint or "")


def test_whatever_brings_a_machine_to_life_is_refused_before_anything_is_done(
    home: Path, tiny: str, machine: insula.Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = insula.connect(home)
    snapshot = machine.snapshot("one")
    asleep = machine.fork(name=f"{machine.name}-asleep")[0].suspend()
    off = connection.create(tiny, name=f"{machine.name}-off", memory="128M", network="none")
    monkeypatch.setenv(OVERCOMMIT, "1")
    monkeypatch.setattr(admit, "available_bytes", lambda: 1)
    before = _there(home)
    for attempt in (
        off.start,
        asleep.start,
        snapshot.restore,
        snapshot.fork,
        lambda: connection.run(tiny, name=f"{machine.name}-new", memory="128M", network="none"),
        lambda: _spare(home, f"{machine.name}@one", 2),
    ):
        with pytest.raises(HostLacks) as error:
            attempt()
        assert error.value.code == "no_memory"
        assert "would fit" in (error.value.hint or "")
        assert _there(home) == before
        assert left_over(home) == []
    assert _ready(home) == []
    assert (off.state, asleep.state, machine.state) == ("stopped", "suspended", "running")
    monkeypatch.undo()
    assert machine.exec("true").code == 0
    assert asleep.start().exec("true").code == 0
    assert off.start().exec("true").code == 0


def test_spares_go_before_anybody_is_refused(home: Path, machine: insula.Machine, give: Give) -> None:
    snapshot = machine.snapshot("one")
    origin = f"{machine.name}@one"
    _spare(home, origin, 2)
    assert _ready(home) == [2]
    try:
        give(_counted(home, machine) - MIB)
        operation = Operation("fork", machine.name)
        request = ForkMachine(name=machine.name, pattern=f"{machine.name}-child")  # of it as it is now: no spare is of that
        LocalClient(home).do(request, operation=operation)
        assert insula.connect(home).get(f"{machine.name}-child").exec("true").code == 0
        assert _ready(home) == [1]  # one was enough
        assert [remark.rpartition(": ")[2] for remark in operation.remarks] == ["1 spare ended"]
    finally:
        _spare(home, origin, 0)
        snapshot.delete()
