"""What a machine is held down to, in the words of limits: never more than its record allows, and possible on every host."""

from __future__ import annotations

from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from insula.model.identity import new_identity
from insula.model.limits import Limits, check_limits
from insula.model.network import Rates
from insula.model.spec import MachineSpec
from insula.operations.holding import forget, held_down, is_held_down, narrowed
from insula.resources.holds import Hold
from insula.resources.pressure import FLOOR, RESOURCES, Resource
from insula.store import names
from insula.store.machines import RECORD_VERSION, Boot, ImageUse, MachineRecord

_LIMITS = st.builds(
    Limits,
    cpu_shares=st.integers(2, 262144),
    cpu_limit=st.sampled_from([0, 10, 500, 1500]),
    cpu_burst=st.sampled_from([0, 10]),
    disk_iops=st.sampled_from([0, 10, 5000]),
    disk_rate=st.sampled_from([0, 65536, 1 << 30]),
    net=st.builds(Rates, up=st.sampled_from([0, 8000, 10**9]), down=st.sampled_from([0, 10**6])),
).filter(lambda limits: limits.cpu_burst <= limits.cpu_limit)
_HOLDS = st.dictionaries(
    st.sampled_from(RESOURCES), st.builds(Hold, st.floats(FLOOR["cpu"], 1e9), st.floats(FLOOR["cpu"], 1e9)), max_size=3
)


def record_with(limits: Limits) -> MachineRecord:
    return MachineRecord(
        version=RECORD_VERSION, id="0", kind="vm", created=0.0, image=ImageUse("tiny", "0"), spec=MachineSpec(),
        identity=new_identity(), boot=Boot("disk"), disks=[], arch="amd64", limits=limits,
    )  # fmt: skip


@settings(max_examples=25)  # a record takes long to make
@given(_LIMITS, _HOLDS, st.booleans())
def test_it_is_never_more_than_the_record_allows_and_always_possible(limits: Limits, holds: dict, grouped: bool) -> None:
    found = narrowed(record_with(limits), holds, grouped=grouped).limits
    check_limits(msgspec.structs.replace(found, cpu_limit=min(found.cpu_limit, 4_000_000)))
    for field in ("cpu_limit", "disk_iops", "disk_rate"):
        before, after = getattr(limits, field), getattr(found, field)
        assert not before or 0 < after <= before
    assert not limits.net.up or 0 < found.net.up <= limits.net.up
    assert found.net.down == limits.net.down
    assert found.cpu_shares <= limits.cpu_shares
    assert found.cpu_shares == limits.cpu_shares or not grouped
    assert (found.pin, found.io_weight) == (limits.pin, limits.io_weight)


def test_what_is_not_held_down_is_as_it_was() -> None:
    record = record_with(Limits(cpu_limit=500, disk_rate=1 << 20))
    assert narrowed(record, {}) == record


def test_caps_in_the_words_of_limits() -> None:
    holds: dict[Resource, Hold] = {"cpu": Hold(0.25, 1.0), "disk": Hold(4 * 1024 * 1024.0, 1e9), "network": Hold(125_000.0, 1e9)}
    found = narrowed(record_with(Limits()), holds).limits
    assert (found.cpu_limit, found.disk_rate, found.disk_iops, found.net) == (250, 4 << 20, 256, Rates(up=1_000_000))
    assert narrowed(record_with(Limits()), {"cpu": Hold(0.5, 1.0)}, grouped=False).limits.cpu_shares == 128


def test_what_nobody_can_read_holds_nobody(tmp_path: Path) -> None:
    assert held_down(tmp_path) == {}
    (tmp_path / names.RUN).mkdir()
    (tmp_path / names.RUN / names.HELD).write_text("nonsense")
    assert held_down(tmp_path) == {}
    assert is_held_down(tmp_path), "so whoever sets limits sets all of them anew"
    forget(tmp_path)
    forget(tmp_path)
    assert not is_held_down(tmp_path)
