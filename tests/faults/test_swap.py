"""Memory that is pushed out to swap while a snapshot is taken is in it: Insula runs inside one of our guests, which swaps."""

from __future__ import annotations

from pathlib import Path

import pytest

import insula
from tests.faults.swap.host import run_in_a_host_that_swaps

pytestmark = [pytest.mark.full, pytest.mark.guest, pytest.mark.limit(3600)]

_BLOB = 12_000_000  # bytes that the machine inside has for itself


def test_memory_in_swap_is_in_the_snapshot(home: Path, tiny: str, name: str, tmp_path: Path) -> None:
    insula.connect(home).warm(tiny, memory="128M", network="none")
    taken = [line.split() for line in run_in_a_host_that_swaps(home, tmp_path, name).splitlines()]
    assert [method for method, _, _ in taken] == ["changed-pages", "mapped-ram"]
    assert min(int(before) for _, before, _ in taken) > _BLOB, "hardly anything was swapped out, so nothing was tried"
