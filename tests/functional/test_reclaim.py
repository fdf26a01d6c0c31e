"""Memory is taken back from real machines when another needs it: spares, then what guests do not use, then idle machines; all of
it on a host that is as large as a test says."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import insula
from insula.errors import HostLacks
from insula.guest.link import open_link
from insula.host import samepages
from insula.isolation.inhabitants import inhabitants
from insula.model.requests import PauseMachine, ResumeMachine
from insula.model.units import MIB
from insula.operations import admit, rest
from insula.operations.context import Context
from insula.operations.operation import Operation
from insula.operations.pause import pause, resume
from insula.operations.squeeze import LEAST, taken_from
from insula.resources.admission import Claim, Room, worst_case
from insula.resources.policy import FILE
from insula.store import names
from insula.store.events import read_events
from insula.store.machines import read_machine
from insula.store.names import Home
from insula.store.records import write_record

pytestmark = [pytest.mark.guest, pytest.mark.limit(400)]

_PATIENCE = 120.0
# What is read of a file without content is in the guest's memory, and nobody's: it can be had back.
_READ = "truncate -s 300M /root/nothing && cat /root/nothing > /dev/null"
_ASKED = 128 * MIB
_MISSING = 72 * MIB  # more than what such a guest has free, and less than what it does not use

Short = Callable[[int], None]


@pytest.fixture
def context(home: Path) -> Context:
    return Context(Home(home))


@pytest.fixture
def policy(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.delenv("INSULA_OVERCOMMIT", raising=False)
    yield home / FILE
    (home / FILE).unlink(missing_ok=True)


@pytest.fixture
def short(context: Context, policy: Path, monkeypatch: pytest.MonkeyPatch) -> Short:
    """Call it, and on this host so many bytes are missing for `_ask`, until somebody gives something back."""
    del policy

    def claims() -> list[Claim]:
        return list(admit._claims(admit._alive(context)).values())

    def change(missing: int) -> None:
        now = claims()
        size = sum(claim.owned for claim in now) + Room(0, now).promised + worst_case(_ASKED, "tcg") // 2 - missing
        monkeypatch.setattr(admit, "available_bytes", lambda: size - sum(claim.owned for claim in claims()))

    return change


@pytest.fixture
def giver(home: Path, tiny: str, name: str) -> Iterator[insula.Machine]:
    """A machine that booted, and whose guest has much in its memory that it does not use."""
    machine = insula.connect(home).create(tiny, name=name, memory="512M", network="none")
    try:
        machine.start().exec("sh", "-c", _READ, check=True)
        yield machine
    finally:
        machine.delete(force=True)


def _ask(context: Context) -> list[str]:
    """Ask for a machine; what is said of others then. Raises HostLacks."""
    operation = Operation("run", "new")
    board = admit.board_of(context, next(record for record in admit._alive(context).values()))
    admit.admit(context, operation, _ASKED, board)
    return operation.remarks


def _free(machine: insula.Machine) -> int:
    """What the guest's kernel says it has, but for what its balloon has."""
    return int(machine.exec("sh", "-c", "sed -n 's/^MemAvailable: *\\([0-9]*\\).*/\\1/p' /proc/meminfo", check=True).stdout)


def _events(folder: Path, kind: str) -> list[dict[str, object]]:
    return [event["data"] for event in read_events(folder) if event["event"] == kind and isinstance(event["data"], dict)]


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)  # between two looks: there is no event for it


def test_a_guest_gives_what_it_does_not_use_and_has_it_again(
    context: Context, giver: insula.Machine, short: Short, policy: Path
) -> None:
    folder = context.home.machine(giver.name)
    before = _free(giver)
    short(_MISSING)
    policy.write_text('balloon-floor = "never"\n')
    with pytest.raises(HostLacks, match="of memory; this host has"):
        _ask(context)
    assert _events(folder, "gave-memory") == []
    policy.unlink()
    (said,) = _ask(context)
    assert said.startswith("freed ")
    assert said.endswith(f"{giver.name} gave back what its guest does not use")
    taken = taken_from(folder)
    assert LEAST <= taken <= 256 * MIB
    assert "lent to other machines" in giver.show().returns
    assert {event["for"] for event in _events(folder, "gave-memory")} == {"run new"}
    assert _free(giver) < before - 10 * 1024
    assert read_machine(folder).shape is None  # it is a loan: its record does not know
    # As soon as there is room for it, it has all of it again: whoever asks next, or whatever ends, looks.
    short(-taken - 64 * MIB)
    assert _ask(context) == []
    assert taken_from(folder) == 0
    assert _events(folder, "has-memory-again") == [{"bytes": taken}]
    _wait(lambda: _free(giver) > before - 20 * 1024)


def test_it_has_its_memory_again_before_it_stands(context: Context, giver: insula.Machine, short: Short) -> None:
    """A guest that stands could not take it; nor could what goes on from its state."""
    short(_MISSING)
    _ask(context)
    folder = context.home.machine(giver.name)
    assert taken_from(folder)
    pause(context, PauseMachine(name=giver.name), Operation("pause", giver.name))
    assert taken_from(folder) == 0
    resume(context, ResumeMachine(name=giver.name), Operation("resume", giver.name))
    assert giver.exec("true").code == 0


def _idle_since(folder: Path, seconds: float) -> None:
    """As if somebody had looked at it so long ago."""
    now, _ = rest._look(list(inhabitants(folder, read_machine(folder).id)))
    write_record(folder / names.RUN / names.AT_REST, rest._Looks([rest.Look(now.at - seconds, now.used)]))


def test_a_machine_that_nobody_uses_is_suspended_where_that_is_allowed(
    context: Context, home: Path, tiny: str, name: str, short: Short, policy: Path
) -> None:
    with contextlib.ExitStack() as stack:
        machine = stack.enter_context(insula.connect(home).run(tiny, name=name, memory="128M", network="none"))
        folder = context.home.machine(name)
        short(8 * MIB)
        _idle_since(folder, 90)
        with pytest.raises(HostLacks):
            _ask(context)  # usually nobody is
        policy.write_text("suspend-idle = 1\n")
        client = stack.enter_context(open_link(folder / names.RUN))
        _wait(lambda: rest.is_attended(list(inhabitants(folder, read_machine(folder).id))))
        with pytest.raises(HostLacks):
            _ask(context)  # somebody is connected to it
        client.close()
        _wait(lambda: not rest.is_attended(list(inhabitants(folder, read_machine(folder).id))))
        _idle_since(folder, 90)
        (said,) = _ask(context)
        assert said.endswith(f"{name} suspended, which was idle (to go on: insula start {name})")
        assert machine.state == "suspended"
        assert _events(folder, "made-room") == [{"for": "run new"}]
        assert machine.start().exec("true").code == 0


@pytest.mark.full
@pytest.mark.skipif(not samepages.can_merge() or samepages.is_merging(), reason="the kernel's merging is not ours to turn on")
def test_equal_pages_are_merged_where_that_is_allowed(
    context: Context, home: Path, tiny: str, name: str, short: Short, policy: Path
) -> None:
    policy.write_text('ksm = true\nballoon-floor = "never"\n')
    pages = Path("/sys/kernel/mm/ksm/pages_sharing")
    here = insula.connect(home)
    with contextlib.ExitStack() as stack:
        for number in range(2):
            machine = here.create(tiny, name=f"{name}-{number}", memory="128M", network="none")
            stack.callback(machine.delete, force=True)
            machine.start()
        short(8 * MIB)
        with contextlib.suppress(HostLacks):  # what is merged counts in what the host has, which is a test's word here
            _ask(context)
        assert samepages.is_merging()
        _wait(lambda: int(pages.read_text()) > 1000)
        for number in range(2):
            here.get(f"{name}-{number}").stop(force=True)
    if not admit._alive(context):
        admit.relieve_all(context)
        assert not samepages.is_merging()
    else:
        policy.write_text("ksm = false\n")
        admit.relieve_all(context)
        assert not samepages.is_merging()
    assert not os.path.exists(context.home.host / names.KSM)
