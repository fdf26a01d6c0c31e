"""What is said of CPUs by a guest is parsed as what it is: anything."""

from __future__ import annotations

import pytest

from insula.operations.resize import count_cpus


@pytest.mark.parametrize(("text", "count"), [("0", 1), ("0-3", 4), ("0-1,4", 3), ("0,2-3,7", 4)])
def test_lists_of_cpus_are_counted(text: str, count: int) -> None:
    assert count_cpus(text) == count


@pytest.mark.parametrize("text", ["", "all", "0-", "-", "0-3-4", "3-0", "9" * 30, "0-99999999"])
def test_nonsense_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        count_cpus(text)
