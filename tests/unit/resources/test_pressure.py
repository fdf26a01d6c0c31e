"""Who suffers and who causes it: never anybody where nobody suffers, always one who takes most beyond its fair part."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from insula.model.units import MIB
from insula.resources.metrics import Rates
from insula.resources.pressure import FLOOR, RESOURCES, Use, divide, find

_amounts = st.floats(0, 64)
_rates = st.builds(
    Rates,
    seconds=st.just(1.0),
    cpu=_amounts,
    wait=_amounts,
    read_bytes=st.floats(0, 1e9),
    write_bytes=st.floats(0, 1e9),
    reads=st.floats(0, 1e5),
    writes=st.floats(0, 1e5),
    read_latency=st.floats(0, 10),
    write_latency=st.floats(0, 10),
    queue=st.floats(0, 128),
    received=st.floats(0, 1e9),
    sent=st.floats(0, 1e9),
    packets=st.floats(0, 1e6),
    drops=st.floats(0, 1e6),
)
_uses = st.builds(
    Use,
    rates=_rates,
    cpus=st.integers(1, 8),
    shares=st.floats(2, 262144),
    weight=st.floats(1, 1000),
    cores=st.frozensets(st.integers(0, 3)),
    device=st.integers(0, 1),
    networks=st.frozensets(st.sampled_from(["a", "b"])),
    limits=st.dictionaries(st.sampled_from(RESOURCES), st.floats(0, 1e9), max_size=3),
)
_looks = st.dictionaries(st.sampled_from("abcdefgh"), _uses, max_size=6)


def hog(**changes: Any) -> Use:
    return Use(Rates(1.0, **changes), cpus=4, networks=frozenset("n"))


_fewer = settings(max_examples=25)  # a look takes long to draw


def blamed(uses: dict[str, Use], cores: int = 1) -> dict[str, str]:
    """By resource, who is the cause."""
    return {finding.resource: finding.cause for finding in find(uses, cores)}


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.floats(0, 100), st.floats(0.1, 100)), min_size=1), st.floats(0, 300)
)
def test_what_is_divided_is_all_of_it_and_nobody_gets_more_than_it_wants(
    guests: dict[str, tuple[float, float]], amount: float
) -> None:
    wanted = {name: guest[0] for name, guest in guests.items()}
    weights = {name: guest[1] for name, guest in guests.items()}
    fair = divide(amount, wanted, weights)
    assert all(0 <= fair[name] <= wanted[name] for name in wanted)
    assert math.isclose(sum(fair.values()), min(amount, sum(wanted.values())), abs_tol=1e-6)
    short = [fair[name] / weights[name] for name in wanted if fair[name] < wanted[name] - 1e-6]
    assert all(math.isclose(part, short[0], rel_tol=1e-6, abs_tol=1e-6) for part in short), "by weight among the unsatisfied"


@_fewer
@given(_looks)
def test_the_cause_takes_most_beyond_its_part_and_is_no_sufferer(uses: dict[str, Use]) -> None:
    for finding in find(uses, 4):
        cause = uses[finding.cause]
        assert finding.sufferers
        assert finding.cause not in finding.sufferers
        assert finding.used == cause.amount(finding.resource)
        assert finding.used - finding.fair > FLOOR[finding.resource]
        for name in finding.sufferers:
            assert not uses[name].is_at_limit(finding.resource)


@_fewer
@given(_looks)
def test_nobody_is_the_cause_where_nobody_waits(uses: dict[str, Use]) -> None:
    quiet = {
        name: replace(use, rates=replace(use.rates, wait=0.0, queue=0.0, drops=0.0)) for name, use in uses.items()
    }  # fmt: skip
    assert find(quiet, 4) == []


@_fewer
@given(_uses)
def test_who_is_alone_disturbs_nobody(use: Use) -> None:
    assert find({"a": use}, 1) == []


@_fewer
@given(_looks, st.sampled_from("abcdefgh"))
def test_who_uses_nothing_is_never_the_cause(uses: dict[str, Use], name: str) -> None:
    uses = {**uses, name: Use(Rates(1.0))}
    assert all(finding.cause != name for finding in find(uses, 4))


def test_four_cpus_that_spin_beside_one() -> None:
    victim = replace(hog(cpu=0.2, wait=0.8), cpus=1)
    (found,) = find({"victim": victim, "noisy": hog(cpu=0.8, wait=3.2)}, 1)
    assert (found.cause, found.sufferers) == ("noisy", ("victim",))
    assert found.fair == pytest.approx(0.5)


def test_equal_parts_are_nobodys_fault() -> None:
    victim = replace(hog(cpu=0.48, wait=0.5), cpus=1)
    assert blamed({"victim": victim, "busy": hog(cpu=0.52, wait=3.4)}) == {}


def test_who_has_more_shares_may_use_more() -> None:
    victim = replace(hog(cpu=0.2, wait=0.8), cpus=1)
    assert blamed({"victim": victim, "first": replace(hog(cpu=0.8, wait=3.2), shares=4096.0)}) == {}
    assert blamed({"victim": replace(victim, shares=10240.0), "noisy": hog(cpu=0.5, wait=3.4)}) == {"cpu": "noisy"}


def test_those_on_other_cores_are_not_to_blame() -> None:
    uses = {
        "victim": replace(hog(cpu=0.2, wait=0.8), cpus=1, cores=frozenset([0])),
        "noisy": replace(hog(cpu=0.8, wait=3.2), cores=frozenset([0])),
        "elsewhere": replace(hog(cpu=3.0, wait=1.0), cores=frozenset([1, 2, 3])),
    }
    assert blamed(uses, 4) == {"cpu": "noisy"}


def test_what_programs_of_the_host_take_is_no_machines_fault() -> None:
    assert blamed({"victim": hog(cpu=0.05, wait=0.9), "other": hog(cpu=0.3, wait=0.7)}, 4) == {}


def test_who_waits_for_a_limit_of_its_own_does_not_suffer() -> None:
    held = replace(hog(cpu=0.2, wait=0.8), limits={"cpu": 0.2})
    assert blamed({"held": held, "busy": hog(cpu=0.8, wait=0.1)}) == {}


def test_eight_streams_beside_one_that_reads_little_by_little() -> None:
    victim = hog(reads=10.0, read_bytes=40960.0, read_latency=0.1, queue=1.0)
    noisy = hog(reads=60.0, read_bytes=60.0 * MIB, read_latency=0.133, queue=8.0)
    (found,) = find({"victim": victim, "noisy": noisy}, 2)
    assert (found.resource, found.cause, found.sufferers) == ("disk", "noisy", ("victim",))


def test_a_disk_that_answers_at_once_keeps_nobody_waiting() -> None:
    victim = hog(reads=1500.0, read_bytes=1500 * 4096.0, read_latency=0.0006, queue=0.9)
    noisy = hog(reads=500.0, read_bytes=500.0 * MIB, read_latency=0.01, queue=5.0)
    assert blamed({"victim": victim, "noisy": noisy}) == {}


def test_a_disk_that_seems_slow_for_want_of_a_cpu_is_not_the_disks_fault() -> None:
    victim = hog(cpu=0.1, wait=0.9, reads=10.0, read_bytes=40960.0, read_latency=0.1, queue=1.0)
    assert "disk" not in blamed({"victim": victim, "noisy": hog(reads=60.0, read_bytes=60.0 * MIB, queue=1.0)})


def test_a_flood_is_the_fault_of_who_sends_it() -> None:
    victim = hog(received=20e6, drops=5000.0, packets=20000.0)
    assert blamed({"victim": victim, "noisy": hog(sent=30e6)}) == {"network": "noisy"}
    assert blamed({"victim": victim, "other": hog(sent=5e6)}) == {}, "it came from elsewhere"
    assert blamed({"victim": victim, "apart": replace(hog(sent=30e6), networks=frozenset("m"))}) == {}
