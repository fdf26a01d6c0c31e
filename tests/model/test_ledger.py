"""The ledger's rules (docs/architecture.md, "The ledger"; docs/snapshots.md has the orders of steps), tried on a model.

Nothing of Insula runs here: files, QEMUs and guests are simulated (filesystem.py, world.py), verbs are lists of the single
steps of docs/snapshots.md (taking.py, loading.py, changing.py, recovery.py), and after every fault (faults.py) the invariants
of checks.py must hold. That the model can find mistakes is shown by making some (mutants.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.framework.points import Points, points_of
from tests.model.checks import check, check_lasting
from tests.model.faults import try_everything
from tests.model.mutants import MISTAKES, WRONG_ORDERS
from tests.model.recovery import recover_all
from tests.model.settings import CASES, case, legal, snapshotted, stopped
from tests.model.steps import Mutation, Verb
from tests.model.world import Violation


@pytest.mark.parametrize("name", CASES)
def test_no_fault_at_any_step_breaks_a_promise(name: str) -> None:
    assert try_everything(partial(case, name, 1)) > 50


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    points = points_of(metafunc.config, "cases", long=True)
    if "disks" in metafunc.fixturenames:
        metafunc.parametrize(("name", "disks"), points.choose([(name, disks) for name in CASES for disks in (2, 3)], 20))
    if "deeply" in metafunc.fixturenames:
        metafunc.parametrize("deeply", points.choose(list(CASES), 6))


@pytest.mark.full
def test_nor_does_any_with_more_disks(name: str, disks: int) -> None:
    try_everything(partial(case, name, disks))


@pytest.mark.full
@pytest.mark.limit(600)
def test_nor_does_a_second_fault_during_recovery(deeply: str) -> None:
    try_everything(partial(case, deeply, 1), deep=True)


@pytest.mark.parametrize("name", WRONG_ORDERS)
def test_a_wrong_order_is_found(name: str) -> None:
    situation, mutation = WRONG_ORDERS[name]
    with pytest.raises(Violation):
        _try_with_any_number_of_disks(situation, mutation)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    situation, replaced, mutation = MISTAKES[name]
    for module, function, mistaken in replaced:
        monkeypatch.setattr(module, function, mistaken)
    with pytest.raises(Violation):
        _try_with_any_number_of_disks(situation, mutation)


def _try_with_any_number_of_disks(situation: str, mutation: Mutation | None) -> None:
    """With another number of them other writes wait for their flush at a step."""
    for disks in (1, 2, 3):
        try_everything(partial(case, situation, disks), mutation)


def test_a_layer_that_changes_is_noticed() -> None:
    world = snapshotted(1)
    check(world)
    world.files.write(world.files.inode("machines/web/layers/root-image"), {7: 7})
    with pytest.raises(Violation):
        check(world)


class Life(RuleBasedStateMachine):
    """Any verbs in any order, any faults, any part of what was not fsynced lost; recovery, itself killed now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.world = stopped(2)

    @rule(data=st.data())
    def verb_succeeds(self, data: st.DataObject) -> None:
        verb = self._choose(data)
        self._run(verb, data)
        verb.finish()
        self._live(data)

    @rule(data=st.data(), fault=st.sampled_from(["killed", "power cut", "QEMU killed"]))
    def verb_meets_a_fault(self, data: st.DataObject, fault: str) -> None:
        verb = self._choose(data)
        verb.steps = verb.steps[: data.draw(st.integers(0, len(verb.steps)), label="steps done")]
        self._run(verb, data)
        if fault == "power cut":
            self._cut(data)
        if fault == "QEMU killed":
            self.world.qemus = []
        self.world.maker_dies()
        self._live(data)
        self._recover(data)

    @rule(data=st.data())
    def power_cut(self, data: st.DataObject) -> None:
        self._live(data)
        self._cut(data)
        self._recover(data)

    @rule(data=st.data())
    def qemu_killed(self, data: st.DataObject) -> None:
        if self.world.qemus:
            self.world.end(data.draw(st.sampled_from(self.world.qemus)))
            self._recover(data)

    @rule(paused=st.booleans(), data=st.data())
    def paused_or_resumed(self, paused: bool, data: st.DataObject) -> None:
        if self.world.qemus:
            data.draw(st.sampled_from(self.world.qemus)).paused = paused

    @invariant()
    def promises_are_kept(self) -> None:
        check(self.world)

    def teardown(self) -> None:
        check_lasting(self.world)

    def _choose(self, data: st.DataObject) -> Verb:
        choices = legal(self.world)
        kind = data.draw(st.sampled_from(sorted({words.split()[0] for words in choices})))
        return choices[data.draw(st.sampled_from([words for words in sorted(choices) if words.startswith(kind)]))]()

    def _run(self, verb: Verb, data: st.DataObject) -> None:
        verb.begin()
        every = data.draw(st.integers(1, 8), label="guests live after every so many steps")
        for index, step in enumerate(verb.steps, 1):
            step.do()
            if index % every == 0:
                self.world.guests_live()

    def _live(self, data: st.DataObject) -> None:
        for flushes in data.draw(st.lists(st.booleans(), max_size=4), label="guests write, flush"):
            for qemu in self.world.qemus:
                (self.world.guest_flushes if flushes else self.world.guest_writes)(qemu)

    def _cut(self, data: st.DataObject) -> None:
        alive = data.draw(st.integers(0, 2 ** len(self.world.files.log) - 1), label="changes that survive")
        self.world.cut_power(lambda index: bool(alive >> index & 1))

    def _recover(self, data: st.DataObject) -> None:
        """Recover; at times the first attempt is killed, or loses power."""
        steps = data.draw(st.none() | st.integers(0, 8), label="recovery killed after")
        if steps is not None:
            for _, _step in zip(range(steps), recover_all(self.world), strict=False):
                pass
            if data.draw(st.booleans(), label="by a power cut"):
                self._cut(data)
        for _ in recover_all(self.world):
            pass


def _live_lives(count: int, steps: int, phases: Sequence[Phase] = tuple(Phase)) -> None:
    """The same lives each time: a failure is found again."""
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=count,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            database=None,
            phases=phases,
        ),
    )


def test_no_life_breaks_a_promise() -> None:
    _live_lives(150, 15)


@pytest.mark.parametrize("name", ["a sweep forgets what snapshots name", "an undo that does not ask QEMU"])
def test_lives_find_mistakes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, function, mistaken in MISTAKES[name][1]:
        monkeypatch.setattr(module, function, mistaken)
    with pytest.raises(Violation):
        _live_lives(400, 30, phases=[Phase.generate])


@pytest.mark.full
@pytest.mark.limit(600)
def test_no_long_life_breaks_a_promise(points: Points) -> None:
    _live_lives(points.many(400, 1500), 40)
