"""Which layers are merged, and what QEMU is told of that."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.operations.merge import BOUND, _as_engine_knows, _replaced, choose_run
from insula.store.machines import DiskRecord, MachineRecord


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


class _Record(msgspec.Struct):
    """What merging looks at of a machine's record."""

    disks: list[DiskRecord]


@settings(max_examples=50)
@given(st.data())
def test_qemu_finds_what_is_meant_however_often_layers_were_merged_in_its_life(data: st.DataObject) -> None:
    """QEMU knows layers by numbers that stay, merged ones by their tokens: here it is a list of these, bottom to top."""
    layers = [f"layers/root-{number}.qcow2" for number in range(data.draw(st.integers(2, 6), label="at the start"))]
    known: list[int | str] = list(range(len(layers)))
    disk = DiskRecord(name="root", layers=layers, head="disks/root-0.qcow2", size=1)
    for turn in range(data.draw(st.integers(1, 6), label="merges")):
        for _ in range(data.draw(st.integers(0, 4), label="snapshots")):
            number = disk.number(len(disk.layers))
            assert number not in known
            known.append(number)
            disk = msgspec.structs.replace(disk, layers=[*disk.layers, f"layers/root-{number}.qcow2"])
        if len(disk.layers) < 4:
            continue
        last = data.draw(st.integers(3, len(disk.layers) - 1), label="to")
        first = data.draw(st.integers(1, last - 2), label="from")
        token = f"m{turn:08x}"
        after = _replaced(cast(MachineRecord, _Record([disk])), 0, disk.layers[:last], first, f"layers/root-{token}.qcow2")
        assert after is not None
        disk = after[0]
        told = _as_engine_knows("disk0", disk, Path(f"/machine/layers/root-{token}.qcow2"))
        assert (told.below, told.above, told.token) == (known[first - 1], known[last], token)
        assert [one for one in known if isinstance(one, int) and told.lowest <= one < told.end] == [
            one for one in known[first:last] if isinstance(one, int)
        ]
        known[first:last] = [token]
        assert disk.merged == sum(disk.runs.values())
        assert len(known) == len(disk.layers)


def test_a_chain_that_is_another_by_now_is_left_alone() -> None:
    layers = [f"layers/{number}" for number in range(6)]
    record = cast(MachineRecord, _Record([DiskRecord(name="root", layers=layers, head="disks/0", size=1)]))
    assert _replaced(record, 0, layers[:4], 1, "layers/root-m.qcow2") is not None
    assert _replaced(record, 0, [*layers[:3], "layers/other"], 1, "layers/root-m.qcow2") is None
    assert _replaced(record, 0, layers, 1, "layers/root-m.qcow2") is None  # the topmost stays
    assert _replaced(record, 1, layers[:4], 1, "layers/root-m.qcow2") is None
