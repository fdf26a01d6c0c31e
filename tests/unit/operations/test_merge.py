"""Which layers are merged."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from insula.operations.merge import BOUND, choose_run


def chain(count: int) -> list[str]:
    return [f"layers/{number}" for number in range(count)]


def test_a_run_that_no_snapshot_names_is_preferred_when_that_is_enough() -> None:
    layers = chain(20)
    assert choose_run(layers, set(layers[10:])) == (1, 10)
    assert choose_run(layers, set(layers[:10])) == (10, 19)


def test_else_all_but_the_lowest_and_the_topmost_become_one() -> None:
    layers = chain(20)
    assert choose_run(layers, set(layers)) == (1, 19)
    assert choose_run(layers, set(layers[::3])) == (1, 19)


@given(st.integers(BOUND + 1, 200), st.data())
def test_afterwards_the_chain_is_short_and_its_ends_are_what_they_were(count: int, data: st.DataObject) -> None:
    layers = chain(count)
    named = data.draw(st.sets(st.sampled_from(layers)))
    first, last = choose_run(layers, named)
    assert 1 <= first < last <= count - 1
    assert count - (last - first) + 1 <= BOUND
    if (first, last) != (1, count - 1):
        assert not named & set(layers[first:last])
