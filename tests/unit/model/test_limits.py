"""Limits as people write them, what contradicts itself, and what a host cannot hold."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.errors import UsageError
from insula.model.limits import (
    WORDS,
    LimitChanges,
    Limits,
    check_host,
    check_limits,
    format_cpus,
    format_disk_rate,
    format_net_rate,
    format_pin,
    narrower,
    parse_cpus,
    parse_disk_rate,
    parse_net_rate,
    parse_pin,
    parse_shares,
)
from insula.model.network import Rates


@pytest.mark.parametrize(
    ("text", "cpus"), [("0", (0,)), ("0,2-3", (0, 2, 3)), ("3,1-2,2", (1, 2, 3)), ("none", ()), ("7-7", (7,))]
)
def test_cpus_are_named_one_by_one_or_in_runs(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_pin(text) == cpus


@pytest.mark.parametrize("text", ["x", "1-", "-1", "2-1", "1,,2", "99999", "4096", "1;2", "٣"])
def test_what_names_no_cpus_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as refusal:
        parse_pin(text)
    assert refusal.value.code == "bad_limit"


@given(st.sets(st.integers(0, 4095), max_size=40))
@settings(deadline=None)
def test_cpus_are_read_as_they_are_written(cpus: set[int]) -> None:
    assert parse_pin(format_pin(tuple(sorted(cpus)))) == tuple(sorted(cpus))


@pytest.mark.parametrize(
    ("text", "thousandths"), [("1.5", 1500), ("0.25", 250), ("2", 2000), ("none", 0), ("0", 0), ("0.125", 125)]
)
def test_a_number_of_cpus_may_be_a_fraction(text: str, thousandths: int) -> None:
    assert parse_cpus(text) == thousandths
    assert parse_cpus(format_cpus(thousandths)) == thousandths


@pytest.mark.parametrize("text", ["1.2345", "-1", "1,5", "nan", "inf", "1e3", "", "12345"])
def test_what_is_no_number_of_cpus_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no number of CPUs"):
        parse_cpus(text)


@pytest.mark.parametrize(
    ("text", "rate"), [("20M", 20 << 20), ("20M/s", 20 << 20), ("1G", 1 << 30), ("none", 0), ("65536", 65536)]
)
def test_a_disk_rate_is_in_bytes_a_second(text: str, rate: int) -> None:
    assert parse_disk_rate(text) == rate
    assert parse_disk_rate(format_disk_rate(rate)) == rate


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("50mbit", Rates(50_000_000, 50_000_000)),
        ("20mbit/none", Rates(20_000_000, 0)),
        ("none", Rates()),
        ("1gbit/8kbit", Rates(1_000_000_000, 8000)),
    ],
)
def test_a_network_rate_is_for_both_ways_or_for_each(text: str, rates: Rates) -> None:
    assert parse_net_rate(text) == rates
    assert parse_net_rate(format_net_rate(rates)) == rates


def test_shares_are_taken_back_by_none() -> None:
    assert parse_shares("none") == Limits().cpu_shares


@pytest.mark.parametrize("field", WORDS)
def test_every_limit_has_words_and_its_default_can_be_written_and_read(field: str) -> None:
    _, parse, write = WORDS[field]
    default = getattr(Limits(), field)
    assert parse(write(default)) == default


def test_words_and_fields_are_the_same() -> None:
    assert tuple(WORDS) == Limits.__struct_fields__ == LimitChanges.__struct_fields__


def test_changes_leave_what_they_do_not_say() -> None:
    limits = LimitChanges(cpu_limit=500).apply(Limits(pin=(1,), cpu_shares=2048))
    assert limits == Limits(pin=(1,), cpu_shares=2048, cpu_limit=500)
    assert not LimitChanges()
    assert LimitChanges(cpu_limit=0)


def test_a_limit_taken_back_takes_its_burst_along() -> None:
    limits = Limits(cpu_limit=500, cpu_burst=500, disk_rate=1 << 20, disk_rate_burst=2 << 20)
    assert LimitChanges(cpu_limit=0, disk_rate=0).apply(limits) == Limits()


def test_the_last_burst_takes_its_time_along() -> None:
    limits = Limits(disk_rate=1 << 20, disk_rate_burst=2 << 20, disk_iops=10, disk_iops_burst=20, burst_time=5)
    assert LimitChanges(disk_rate=0).apply(limits).burst_time == 5
    assert LimitChanges(disk_rate=0, disk_iops_burst=0).apply(limits) == Limits(disk_iops=10)
    with pytest.raises(UsageError, match="no burst to last so long") as refusal:
        check_limits(LimitChanges(burst_time=9).apply(Limits(disk_rate=1 << 20)))
    assert refusal.value.code == "contradictory_limits"


@pytest.mark.parametrize("field", WORDS)
@pytest.mark.parametrize("text", ["", " "])
def test_a_variable_that_was_not_set_is_no_limit(field: str, text: str) -> None:
    """`--pin "$CORES"` is refused, and takes nothing back."""
    with pytest.raises(UsageError):
        WORDS[field][1](text)


def test_what_is_said_beside_a_profile_wins() -> None:
    profile = LimitChanges(cpu_limit=500, io_weight=10)
    assert profile.beneath(LimitChanges(cpu_limit=0)) == LimitChanges(cpu_limit=0, io_weight=10)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(cpu_shares=1),
        Limits(cpu_shares=262_145),
        Limits(cpu_limit=9),
        Limits(cpu_limit=-1000),
        Limits(io_weight=0),
        Limits(disk_iops=1),
        Limits(disk_rate=1000),
        Limits(disk_rate=-5),
        Limits(burst_time=0),
        Limits(pin=(2, 1)),
        Limits(pin=(-1,)),
    ],
)
def test_nonsense_is_refused(limits: Limits) -> None:
    with pytest.raises(UsageError) as refusal:
        check_limits(limits)
    assert refusal.value.code == "bad_limit"
    assert refusal.value.hint


@pytest.mark.parametrize(
    "limits",
    [
        Limits(pin=(0,), cpu_limit=1500),
        Limits(cpu_burst=500),
        Limits(cpu_limit=500, cpu_burst=600),
        Limits(disk_iops_burst=100),
        Limits(disk_rate=2 << 20, disk_rate_burst=1 << 20),
    ],
)
def test_limits_that_contradict_each_other_are_refused(limits: Limits) -> None:
    with pytest.raises(UsageError) as refusal:
        check_limits(limits)
    assert refusal.value.code == "contradictory_limits"


def test_what_the_host_has_not_is_refused() -> None:
    check_host(Limits(pin=(0, 1), cpu_limit=2000), {0, 1})
    for limits in (Limits(pin=(0, 2)), Limits(cpu_limit=2001)):
        with pytest.raises(UsageError) as refusal:
            check_host(limits, {0, 1})
        assert refusal.value.code == "beyond_host"


def test_a_card_is_held_to_the_narrower_of_two_rates() -> None:
    assert narrower(Rates(up=5, down=0), Rates(up=0, down=7)) == Rates(up=5, down=7)
    assert narrower(Rates(up=5, down=9), Rates(up=6, down=7)) == Rates(up=5, down=7)
