"""What the guard says: what is new, and in the end that there was nothing."""

from __future__ import annotations

import pytest

from insula.cli.guard import _Teller
from insula.model.guarding import Disturbance, GuardLook, GuardStep

_PROVEN = Disturbance("cpu", "hog", ["web"], 3.0, 1.0, proven=True)
_GUESSED = Disturbance("cpu", "hog", ["web"], 3.0, 1.0)
_STEP = GuardStep("hog", "cpu", "release")


def look(*disturbances: Disturbance, steps: tuple[GuardStep, ...] = (), machines: int = 2) -> GuardLook:
    return GuardLook(1.0, machines, [*disturbances], [*steps], {})


@pytest.mark.parametrize(
    ("looks", "said"),
    [
        ([look(), look(_GUESSED)], "nobody makes others suffer: 2 machines looked at\n"),
        ([look(machines=1)], "nobody makes others suffer: 1 machine looked at\n"),
        ([look(_PROVEN), look()], "hog takes 3.00 of the CPUs, fair is 1.00: web goes short\n"),
        ([look(steps=(_STEP,)), look()], "hog: let go of the CPUs\n"),
    ],
)
def test_that_there_was_nothing_is_said_too(looks: list[GuardLook], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    teller = _Teller()
    for each in looks:
        teller.tell(each)
    teller.conclude()
    assert capsys.readouterr().out == said
