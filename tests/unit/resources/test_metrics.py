"""From two samples to rates: whatever the numbers are, no rate is negative, and nothing fails."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.host.counters import Thread
from insula.resources.metrics import CardCounts, DiskCounts, Rates, Sample, rates

_count = st.integers(0, 1 << 62)
_disks = st.none() | st.builds(DiskCounts, *[_count] * 8)
_cards = st.dictionaries(st.sampled_from(["a", "b"]), st.builds(CardCounts, *[_count] * 6))
_samples = st.builds(
    Sample,
    at=st.floats(0, 1e6),
    cpu_ns=_count,
    threads=st.dictionaries(st.integers(1, 4), st.builds(Thread, _count, _count)),
    disk=_disks,
    cards=_cards,
    pressure=st.dictionaries(st.sampled_from(["cpu", "io"]), _count),
)


@given(_samples, _samples)
def test_no_rate_is_negative(before: Sample, after: Sample) -> None:
    found = rates(before, after)
    numbers = [getattr(found, name) for name in Rates.__struct_fields__ if name not in ("pressure", "disk_known")]
    assert all(number >= 0 and math.isfinite(number) for number in [*numbers, found.latency, found.network])
    assert all(0 <= share <= 1 for share in found.pressure.values())
    assert found.disk_known == (before.disk is not None and after.disk is not None)


def test_what_two_samples_tell() -> None:
    before = Sample(
        10.0,
        threads={1: Thread(5 * 10**9, 0), 2: Thread(0, 10**9), 3: Thread(10**9, 10**9)},
        disk=DiskCounts(reads=10, read_bytes=40960, read_ns=10**9),
        cards={"a": CardCounts(received=1000, dropped_received=2)},
        pressure={"cpu": 1_000_000},
    )
    after = Sample(
        12.0,
        threads={1: Thread(6 * 10**9, 0), 2: Thread(10**9, 2 * 10**9), 4: Thread(10**9, 10**9)},
        disk=DiskCounts(reads=30, read_bytes=122880, read_ns=2 * 10**9, writes=1, write_ns=10**9),
        cards={"a": CardCounts(received=3000, dropped_received=6), "b": CardCounts(sent=500)},
        pressure={"cpu": 2_000_000, "io": 5},
    )
    found = rates(before, after)
    assert (found.cpu, found.wait) == (1.5, 1.0), "thread 3 has ended, thread 4 is new"
    assert (found.reads, found.read_bytes, found.read_latency) == (10.0, 40960.0, 0.05)
    assert (found.writes, found.write_latency) == (0.5, 1.0)
    assert found.queue == 1.0
    assert found.latency == pytest.approx(2.0 / 21)
    assert (found.received, found.sent, found.drops) == (1000.0, 250.0, 2.0)
    assert found.pressure == {"cpu": 0.5}


def test_a_sample_sums_up() -> None:
    sample = Sample(0.0, threads={1: Thread(1, 2), 2: Thread(3, 4)}, cards={"a": CardCounts(1, 2, 3), "b": CardCounts(10)})
    assert sample.waited_ns == 6
    assert sample.network == CardCounts(11, 2, 3)
