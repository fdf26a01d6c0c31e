"""Holding down and letting go: after proof only, by steps, never below what is fair, and always undone in the end."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from insula.resources.holds import AGAIN, CALM, EASE, MOST_CALM, PROOF, STEP, Action, Hold, Judge, Key, narrowest
from insula.resources.pressure import FLOOR, RESOURCES, Finding, Resource

_fewer = settings(max_examples=25)  # a course of many looks takes long
_MACHINES = ("a", "b", "c")


@st.composite
def _finding(draw: st.DrawFn) -> Finding:
    resource: Resource = draw(st.sampled_from(RESOURCES))
    cause = draw(st.sampled_from(_MACHINES))
    fair = draw(st.floats(0, 1e3)) * FLOOR[resource]
    used = fair + draw(st.floats(1.01, 1e3)) * FLOOR[resource]
    return Finding(resource, tuple(name for name in _MACHINES if name != cause), cause, used, fair)


_looks = st.lists(st.lists(_finding(), max_size=3, unique_by=lambda finding: finding.resource), max_size=30)


@_fewer
@given(_looks, st.lists(st.tuples(st.sampled_from(_MACHINES), st.sampled_from(RESOURCES))))
def test_no_step_without_proof_none_below_the_floor_and_none_unfair(
    looks: list[list[Finding]], pressing: list[tuple[str, Resource]]
) -> None:
    judge = Judge()
    running: dict[tuple[str, str], int] = {}
    known: set[tuple[str, str]] = set()
    for findings in looks:
        before = dict(judge.held)
        actions = judge.decide(findings, _MACHINES, pressing)
        named = {(finding.cause, finding.resource): finding for finding in findings}
        running = {key: max(0, running.get(key, 0) + (1 if key in named else -1)) for key in {*running, *named}}
        for action in actions:
            key = (action.machine, action.resource)
            if action.kind == "hold":
                assert running[key] >= (AGAIN if key in known else PROOF)
                known.add(key)
                running[key] = 0
                assert action.cap >= FLOOR[action.resource]
                assert action.cap >= named[key].fair
                assert action.machine not in action.sufferers
                assert action.cap < (before[key].cap if key in before else named[key].used)
            else:
                assert key not in named, "nobody is let go who is the cause just now"
                assert action.resource not in {finding.resource for finding in findings}
        assert set(judge.held) <= {(name, resource) for name in _MACHINES for resource in RESOURCES}


@_fewer
@given(_looks, st.booleans())
def test_whatever_was_held_is_let_go_when_nobody_suffers(looks: list[list[Finding]], presses: bool) -> None:
    judge = Judge()
    for findings in looks:
        judge.decide(findings, _MACHINES)
    held = dict(judge.held)
    caps = {key: hold.cap for key, hold in held.items()}
    released = set()
    # A step gives back by a factor: from the floor to a million times as much is less than ninety of them.
    for _ in range(4 * 90 * (MOST_CALM + 1)):
        if not judge.held:
            break
        for action in judge.decide([], _MACHINES, list(judge.held) if presses else ()):
            key = (action.machine, action.resource)
            if action.kind == "release":
                released.add(key)
            else:
                assert action.kind == "ease"
                assert caps[key] < action.cap < held[key].used
                caps[key] = action.cap
    assert judge.held == {}
    assert released == set(held)


@_fewer
@given(st.lists(st.booleans(), min_size=1, max_size=120))
def test_one_that_comes_and_goes_does_not_make_it_flap(noisy: list[bool]) -> None:
    judge = Judge()
    finding = Finding("cpu", ("b",), "a", 0.8, 0.5)
    steps = [
        action.kind
        for suffers in noisy
        for action in judge.decide([finding] if suffers else [], _MACHINES)
    ]  # fmt: skip
    assert len(steps) <= 1 + len(noisy) / AGAIN
    turns = sum(1 for one, next_ in itertools.pairwise(steps) if (one == "hold") != (next_ == "hold"))
    assert turns <= 1 + 2 * len(noisy) / (AGAIN + CALM)


def _until(judge: Judge, findings: list[Finding], kind: str) -> tuple[int, Action]:
    for look in range(1, 1000):
        for action in judge.decide(findings, _MACHINES):
            if action.kind == kind:
                return look, action
    raise AssertionError(kind)


def test_the_second_time_is_given_back_later() -> None:
    judge = Judge()
    finding = Finding("disk", ("b",), "a", 60e6, 30e6)
    assert _until(judge, [finding], "hold")[0] == PROOF
    first = _until(judge, [], "release")[0]
    _until(judge, [finding], "hold")
    assert _until(judge, [], "release")[0] == 2 * first


def test_what_helped_before_is_what_it_is_held_to_again() -> None:
    judge = Judge()
    bad = Finding("disk", ("b",), "a", 60e6, 5e6)
    first = _until(judge, [bad], "hold")[1]
    second = _until(judge, [replace(bad, used=first.cap)], "hold")[1]
    assert (first.cap, second.cap) == (60e6 * STEP, 60e6 * STEP * STEP)
    eased = _until(judge, [], "ease")[1]
    assert eased.cap == second.cap / EASE
    look, again = _until(judge, [replace(bad, used=eased.cap)], "hold")
    assert (look, again.cap) == (AGAIN, eased.cap * STEP)
    _until(judge, [], "release")
    look, again = _until(judge, [bad], "hold")
    assert (look, again.cap) == (AGAIN, eased.cap * STEP)


def test_one_that_presses_is_given_back_later() -> None:
    lookers = []
    pressed: list[list[Key]] = [[], [("a", "cpu")]]
    for pressing in pressed:
        judge = Judge()
        _until(judge, [Finding("cpu", ("b",), "a", 0.8, 0.5)], "hold")
        looks = 1
        while not judge.decide([], _MACHINES, pressing):
            looks += 1
        lookers.append(looks)
    assert lookers == [CALM, 4 * CALM]


def test_one_that_ends_is_forgotten() -> None:
    judge = Judge()
    _until(judge, [Finding("cpu", ("b",), "a", 0.8, 0.5)], "hold")
    assert judge.decide([], ("b", "c")) == []
    assert judge.held == {}
    assert judge == Judge()


def test_a_new_life_is_not_held_for_the_former_one() -> None:
    judge = Judge(held={("a", "cpu"): Hold(0.5, 0.8), ("b", "cpu"): Hold(0.5, 0.8)})
    judge.drop("a")
    assert set(judge.held) == {("b", "cpu")}


def test_what_a_dead_guard_held_is_let_go_by_the_next() -> None:
    judge = Judge(held={("a", "network"): Hold(1e6, 2e6)})
    assert _until(judge, [], "release")[1].machine == "a"


def test_what_could_not_be_done_is_not_remembered_as_done() -> None:
    judge = Judge()
    _, action = _until(judge, [Finding("cpu", ("b",), "a", 0.8, 0.5)], "hold")
    judge.undo(action, None)
    assert judge.held == {}


def test_what_one_machine_is_held_to() -> None:
    holds: dict[tuple[str, Resource], Hold] = {
        ("a", "cpu"): Hold(0.5, 1.0),
        ("a", "disk"): Hold(1e6, 2e6),
        ("b", "cpu"): Hold(0.2, 1),
    }
    assert narrowest(holds, "a") == {"cpu": 0.5, "disk": 1e6}
