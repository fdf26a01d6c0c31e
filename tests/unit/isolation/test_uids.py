from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.isolation.uids import JailIds, ids_from_map

WHOLE = "         0          0 4294967295\n"
CONTAINER = "         0     100000      65536\n"


@given(st.uuids())
def test_a_machine_has_ids_of_its_own_and_always_the_same(machine: uuid.UUID) -> None:
    ids = ids_from_map(str(machine), WHOLE)
    assert ids == ids_from_map(str(machine), WHOLE)
    assert ids.machine is not None
    assert ids.network is not None
    assert ids.tpm is not None
    assert 1_000_000_000 <= ids.machine < ids.network < ids.tpm < 2**31


@given(st.uuids(), st.uuids())
def test_helpers_never_have_the_id_of_a_machine(one: uuid.UUID, other: uuid.UUID) -> None:
    for table in (WHOLE, CONTAINER):
        first, second = ids_from_map(str(one), table), ids_from_map(str(other), table)
        assert first.machine is not None
        assert second.network is not None
        assert second.tpm is not None
        assert len({first.machine, second.network, second.tpm}) == 3


@given(st.uuids())
def test_in_a_container_the_ids_are_mapped_ones(machine: uuid.UUID) -> None:
    ids = ids_from_map(str(machine), CONTAINER)
    assert ids.machine is not None
    assert ids.network is not None
    assert ids.tpm is not None
    assert 32768 <= ids.machine < ids.network < ids.tpm < 65536


@pytest.mark.parametrize("table", ["", "0 1000 1\n", "garbage\n"])
def test_without_ids_to_give_the_callers_own_are_used(table: str) -> None:
    assert ids_from_map("11111111-2222-4333-8444-555555555555", table) == JailIds(None, None, None)
