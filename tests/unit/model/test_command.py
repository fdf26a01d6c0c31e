"""A command said quickly and the request it becomes say the same: nothing is lost on the way, nothing is named twice."""

from __future__ import annotations

import msgspec

from insula.model.command import Command
from insula.model.requests import ExecMachine, Execution, RunMachine


def test_a_command_becomes_the_request_that_says_the_same() -> None:
    command = Command(["a", "b"], env=["K=V"], user="anna", cwd="/tmp", tty=True, rows=9, cols=8, wait=1.5)
    request = msgspec.convert({"name": "web", **command.fields()}, ExecMachine)
    assert {field: getattr(request, field) for field in ExecMachine.__struct_fields__} == {"name": "web", **command.fields()}


def test_what_is_left_out_means_the_same_to_both() -> None:
    request = ExecMachine(name="web", argv=("a",))
    assert Command(["a"]).fields() == {field: getattr(request, field) for field in Command.__slots__}


def test_running_and_executing_take_the_same_words() -> None:
    for kind in (RunMachine, ExecMachine):
        assert set(Execution.__struct_fields__) <= set(kind.__struct_fields__)
    assert {*Execution.__struct_fields__, "wait"} == set(Command.__slots__)
