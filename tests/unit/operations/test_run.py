"""What `run` refuses before it makes anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula.errors import HostLacks
from insula.host.memory import total_bytes
from insula.model.requests import RunMachine
from insula.model.spec import MachineSpec
from insula.model.units import MIB
from insula.operations.context import Context
from insula.operations.operation import Operation, Progress
from insula.operations.run import run
from insula.store.names import Home


def test_memory_this_host_has_not_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    context = Context(Home(tmp_path / "home"))
    told: list[Progress] = []
    spec = MachineSpec(memory=(total_bytes() // MIB + 1) * MIB)
    with pytest.raises(HostLacks) as error:
        run(context, RunMachine(image="tiny", name="big", spec=spec), Operation("run", "big", told.append))
    assert error.value.code == "no_memory"
    assert told == []
    assert not context.home.root.exists()
