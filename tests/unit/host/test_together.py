"""Things done side by side."""

from __future__ import annotations

import sys
import threading

import pytest

from insula.host.together import Beside, short_turns, together


def test_all_is_done_though_one_fails() -> None:
    done: list[str] = []

    def fail() -> None:
        raise ValueError("the first")

    with pytest.raises(ValueError, match="the first"):
        together(fail, lambda: done.append("second"), lambda: done.append("third"))
    assert sorted(done) == ["second", "third"]


def test_work_is_done_beside_what_follows() -> None:
    followed = threading.Event()
    done: list[bool] = []
    beside = Beside(lambda: done.append(followed.wait(10)))
    beside.begin()
    followed.set()
    beside.wait()
    assert done == [True]


def test_what_goes_wrong_beside_is_raised_by_who_waits() -> None:
    def fail() -> None:
        raise ValueError("beside")

    beside = Beside(fail)
    beside.begin()
    beside.join()
    with pytest.raises(ValueError, match="beside"):
        beside.wait()


def test_nothing_is_waited_for_that_was_not_begun() -> None:
    done: list[bool] = []
    beside = Beside(lambda: done.append(True))
    beside.wait()
    beside.join()
    assert done == []


def test_turns_are_short_while_anybody_wishes_so_and_as_before_then() -> None:
    before = sys.getswitchinterval()
    with short_turns():
        with short_turns():
            pass
        assert sys.getswitchinterval() < before
    assert sys.getswitchinterval() == before
