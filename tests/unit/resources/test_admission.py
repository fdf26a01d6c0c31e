"""For how many machines the memory of a host is."""

from __future__ import annotations

import pytest

from insula.engines.qemu import board
from insula.model.units import GIB, MIB
from insula.resources.admission import PROCESS, TRANSLATED, Claim, Room, Stock, worst_case


def test_a_machine_may_come_to_own_its_memory_and_what_qemu_takes() -> None:
    assert worst_case(512 * MIB, "kvm") == 512 * MIB + PROCESS
    assert worst_case(512 * MIB, "tcg") == 512 * MIB + PROCESS + TRANSLATED
    assert TRANSLATED == board._TRANSLATION_CACHE_MIB * MIB


@pytest.mark.parametrize("accelerator", ["kvm", "tcg"])
def test_what_is_usual_fits_and_a_thousand_do_not(accelerator: str) -> None:
    room = Room(22 * GIB, [])
    each = room.counted(worst_case(512 * MIB, accelerator))
    assert 40 * each < room.left
    assert room.left < 100 * each


def test_one_that_runs_is_counted_until_it_owns_what_it_is_counted_with() -> None:
    worst = worst_case(512 * MIB, "kvm")
    counted = worst // 2
    for owned, promised in ((0, counted), (counted - MIB, MIB), (counted, 0), (worst, 0)):
        room = Room(4 * GIB, [Claim(worst, owned)])
        assert (room.promised, room.left) == (promised, 4 * GIB - promised)
    assert Room(GIB, [Claim(worst, 0), Claim(worst, worst)] * 3).left == GIB - 3 * counted
    assert Room(GIB, [Claim(8 * GIB, 0)]).left == 0


def test_of_what_may_be_promised_more_than_once_so_much_is_left() -> None:
    assert Stock(2, 3, 5).left == 1
    assert Stock(2, 3, 9).left == 0
