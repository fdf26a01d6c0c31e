"""Taking memory back, rung by rung: no more than is needed, nothing when it would not be enough, and said once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from insula.errors import Busy
from insula.model.units import MIB
from insula.operations import reclaim
from insula.operations.context import Context
from insula.operations.operation import Operation
from insula.operations.promises import growth_of_unfinished
from insula.operations.reclaim import Need, Offer, told
from insula.operations.rest import Look, was_idle
from insula.resources.policy import Policy
from insula.store import names
from insula.store.names import Home

Give = Callable[[str, int, int], Offer]


class Host:
    """One that is short of ``missing`` bytes; ``taken``: what was asked of whom."""

    def __init__(self, home: Path, missing: int) -> None:
        self.missing = missing
        self.taken: list[tuple[str, int]] = []
        self.operation = Operation("run", "new")
        self.need = Need(Context(Home(home)), self.operation, Policy(), lambda: self.missing, {}, lambda worst: worst)

    def offer(self, word: str, gain: int, really: int | None = None) -> Offer:
        def take(wanted: int) -> str:
            self.taken.append((word, wanted))
            if really == -1:
                raise Busy("somebody works on it")
            self.missing -= gain if really is None else really
            return word if really != 0 else ""

        return Offer(gain, take)


@pytest.fixture
def rungs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def put(*rungs: list[Offer]) -> None:
        monkeypatch.setattr(reclaim, "_RUNGS", tuple(lambda _, rung=rung: iter(rung) for rung in rungs))

    return put


def test_it_goes_from_rung_to_rung_and_takes_no_more_than_it_needs(tmp_path: Path, rungs: Callable[..., None]) -> None:
    host = Host(tmp_path, 300)
    rungs([host.offer("spare", 100), host.offer("spare", 100)], [host.offer("a gave", 150), host.offer("b gave", 150)])
    reclaim.reclaim(host.need)
    assert host.taken == [("spare", 300), ("spare", 200), ("a gave", 100)]
    assert host.operation.remarks == ["freed 350 B of memory: 2 spares ended, a gave"]


def test_nothing_is_taken_when_all_of_it_is_too_little(tmp_path: Path, rungs: Callable[..., None]) -> None:
    host = Host(tmp_path, 300)
    rungs([host.offer("spare", 100)], [host.offer("a gave", 199)])
    reclaim.reclaim(host.need)
    assert (host.taken, host.operation.remarks) == ([], [])


def test_nobody_gives_more_once_the_rest_would_not_be_enough(tmp_path: Path, rungs: Callable[..., None]) -> None:
    host = Host(tmp_path, 300)
    rungs([host.offer("spare", 200, 50)], [host.offer("suspended", 200)])
    reclaim.reclaim(host.need)
    assert host.taken == [("spare", 300)]


def test_who_is_worked_on_or_gives_nothing_is_passed_over(tmp_path: Path, rungs: Callable[..., None]) -> None:
    host = Host(tmp_path, 100)
    rungs([host.offer("a gave", 100, -1), host.offer("b gave", 100, 0), host.offer("c gave", 100)])
    reclaim.reclaim(host.need)
    assert [word for word, _ in host.taken] == ["a gave", "b gave", "c gave"]
    assert host.operation.remarks == ["freed 100 B of memory: c gave"]


def test_what_was_done_is_said_once() -> None:
    assert told(["spare"]) == "1 spare ended"
    assert told(["spare", "spare", "warm state", "web gave back", "web gave back"]) == (
        "2 spares ended, 1 warm state deleted, web gave back"
    )


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder on a tmpfs."""
    place = Path("/dev/shm") / f"insula-test-{os.getpid()}"
    place.mkdir()
    yield place
    for path in sorted(place.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    place.rmdir()


def _warm(home: Path, key: str, age: float) -> Path:
    folder = home / "warm" / key
    folder.mkdir(parents=True)
    (folder / "memory").write_bytes(b"x" * MIB)
    os.utime(folder, (1e9 - age, 1e9 - age))
    return folder


def test_warm_states_go_where_they_lie_in_memory_the_oldest_first(in_memory: Path) -> None:
    host = Host(in_memory, MIB)
    for key, age in (("young", 1.0), ("old", 9.0), ("used", 99.0), ("needed", 999.0)):
        _warm(in_memory, key, age)
    os.link(in_memory / "warm/used/memory", in_memory / "mapped")
    need = Need(host.need.context, host.operation, Policy(), lambda: 0, {}, lambda worst: worst, in_memory / "warm/needed")
    offers = list(reclaim._warm_states(need))
    assert [offer.gain for offer in offers] == [MIB, MIB]
    assert offers[0].take(1) == "warm state"
    assert sorted(os.listdir(in_memory / "warm")) == ["needed", "used", "young"]


def test_a_few_percent_of_a_cpu_over_the_minutes_in_question_are_idle() -> None:
    now = Look(10_000.0, 100.0)
    for look, idle in (
        (Look(10_000.0 - 600, 100.0 - 29), True),
        (Look(10_000.0 - 600, 100.0 - 30), False),
        (Look(10_000.0 - 599, 100.0), False),  # too short a time
        (Look(0.0, 100.0 - 29), True),  # whenever it was, it was not much
        (Look(0.0, 100.0 - 31), False),  # all of it may have been in the last minute
        (Look(10_000.0 - 600, 101.0), False),  # of processes that have ended
    ):
        assert was_idle([look], now, 10) is idle, look
    assert not was_idle([], now, 10)
    assert was_idle([Look(0.0, 0.0), Look(9000.0, 99.0)], now, 10)


def test_layers_that_are_merged_may_yet_take_as_much_as_they_are(tmp_path: Path) -> None:
    for name, size in (("0", 8 * MIB), ("1", 2 * MIB), ("2", MIB)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert growth_of_unfinished(tmp_path) == 0  # it has not begun, and nobody knows what it is
    (tmp_path / names.MERGED).write_bytes(b"x" * MIB)
    assert growth_of_unfinished(tmp_path) == 2 * MIB
