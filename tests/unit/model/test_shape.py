"""What CPUs and memory a machine has while it runs."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model.shape import MEMORY_PLACES, PIECE, Dimm, Shape, check_shape, kept_shape, most_cpus, most_memory, shape_of
from insula.model.spec import MOST_CPUS, MOST_MEMORY, MachineSpec
from insula.model.units import GIB, MIB

SPEC = MachineSpec(cpus=2, memory=512 * MIB)
DIMM = Dimm("0a1b2c3d", 0, PIECE, 4 * GIB)


def test_a_machine_with_what_it_booted_with_needs_no_note() -> None:
    shape = shape_of(SPEC, None)
    assert (shape.present, shape.total, shape.usable, shape.used_cpus) == ((0, 1), 512 * MIB, 512 * MIB, 2)
    assert kept_shape(SPEC, shape) is None
    assert shape_of(SPEC, kept_shape(SPEC, shape)) == shape


def test_what_is_plugged_in_counts() -> None:
    shape = msgspec.structs.replace(shape_of(SPEC, None), present=(0, 1, 2), dimms=(DIMM,), balloon=64 * MIB, parked=1)
    assert (shape.total, shape.usable, shape.used_cpus) == (640 * MIB, 576 * MIB, 2)
    assert shape.free_numbers == [3, 4, 5, 6, 7]
    assert shape.free_slots == list(range(1, MEMORY_PLACES))
    assert kept_shape(SPEC, shape) == shape


def test_only_what_is_found_is_there() -> None:
    shape = msgspec.structs.replace(shape_of(SPEC, None), dimms=(msgspec.structs.replace(DIMM, address=0),), parked=1)
    found = shape.as_found([0], {DIMM.name: DIMM.address, "ffffffff": 8 * GIB})
    assert (found.present, found.dimms, found.parked) == ((0,), (DIMM,), 0)
    assert shape.as_found([0, 1], {}).dimms == ()
    assert shape.as_found([0, 1, 99], {}).present == (0, 1)


@given(st.integers(1, MOST_CPUS))
def test_there_is_room_for_whole_packages_of_cpus(cpus: int) -> None:
    assert most_cpus(cpus) >= max(8, 2 * cpus)
    assert most_cpus(cpus) % cpus == 0


@given(st.integers(96, MOST_MEMORY // MIB))
def test_there_is_room_for_memory(mib: int) -> None:
    assert most_memory(mib * MIB) - mib * MIB >= 16 * GIB
    assert most_memory(mib * MIB) % GIB == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"present": ()},
        {"present": (1,)},
        {"present": (0, 0)},
        {"present": (0, 8)},
        {"dimms": (DIMM, DIMM)},
        {"dimms": (DIMM, Dimm("ffffffff", 0, PIECE))},
        {"dimms": (Dimm("../../etc", 1, PIECE),)},
        {"dimms": (Dimm("0a1b2c3d", MEMORY_PLACES, PIECE),)},
        {"dimms": (Dimm("0a1b2c3d", 1, PIECE + 1),)},
        {"dimms": (Dimm("0a1b2c3d", 1, 0),)},
        {"dimms": (Dimm("0a1b2c3d", 1, 1024 * GIB),)},
        {"dimms": (Dimm("0a1b2c3d", 1, PIECE, 1 << 41),)},
        {"balloon": 512 * MIB},
        {"parked": 2},
    ],
)
def test_what_no_machine_can_have_is_seen(changes: dict) -> None:
    assert check_shape(shape_of(SPEC, None))
    assert not check_shape(msgspec.structs.replace(shape_of(SPEC, None), **changes))


def test_a_shape_is_written_and_read() -> None:
    shape = msgspec.structs.replace(shape_of(SPEC, None), dimms=(DIMM,))
    assert msgspec.json.decode(msgspec.json.encode(shape), type=Shape) == shape
