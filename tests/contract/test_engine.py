"""What every engine does alike: engines/base.py, sentence by sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from insula.engines.base import DirectBoot, DiskPlan, Hardware, LayerFile
from insula.errors import DamagedRecord, GuestError, HostLacks, MachineEnded, UsageError
from insula.host.sockets import is_listening
from insula.model.limits import Limits
from insula.model.shape import PIECE, Dimm
from insula.model.units import GIB, MIB
from insula.resources.throttles import throttle_limits
from insula.store import names
from tests.contract.conftest import Bench

pytestmark = pytest.mark.guest

Eventually = Callable[[Callable[[], bool]], None]


def state(run: Path) -> str:
    return str(json.loads((run / names.STATUS).read_bytes())["state"])


def test_a_launched_machine_is_alive_and_running(bench: Bench, eventually: Eventually) -> None:
    run = bench.launch(bench.plan())
    assert is_listening(run / names.KEEPER_SOCKET)
    eventually(lambda: state(run) == "running")
    assert run.stat().st_mode & 0o077 == 0


def test_pause_and_resume_may_be_said_twice(bench: Bench, eventually: Eventually) -> None:
    run = bench.launch(bench.plan())
    for _ in range(2):
        bench.engine.pause(run)
        eventually(lambda: state(run) == "paused")
    for _ in range(2):
        bench.engine.resume(run)
        eventually(lambda: state(run) == "running")


def test_the_power_button_does_not_wait_for_the_guest(bench: Bench) -> None:
    run = bench.launch(bench.plan())
    bench.engine.power_button(run)
    assert is_listening(run / names.KEEPER_SOCKET)


def test_an_ended_machine_is_said_to_have_ended(bench: Bench, eventually: Eventually) -> None:
    run = bench.launch(bench.plan())
    bench.end(run)
    eventually(lambda: not is_listening(run / names.KEEPER_SOCKET))
    assert json.loads((run / names.EXIT).read_bytes())["reason"]
    for verb in (bench.engine.pause, bench.engine.resume, bench.engine.power_button):
        with pytest.raises(MachineEnded):
            verb(run)


def test_a_machine_that_never_ran_is_not_running(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(MachineEnded):
        bench.engine.pause(tmp_path / "run")


def test_it_can_be_launched_again(bench: Bench, eventually: Eventually) -> None:
    plan = bench.plan()
    run = bench.launch(plan)
    bench.end(run)
    eventually(lambda: not is_listening(run / names.KEEPER_SOCKET))
    bench.launch(plan)
    eventually(lambda: state(run) == "running")


def test_two_machines_do_not_meet(bench: Bench, eventually: Eventually) -> None:
    one, other = bench.launch(bench.plan("one")), bench.launch(bench.plan("other"))
    bench.engine.pause(one)
    eventually(lambda: state(one) == "paused")
    eventually(lambda: state(other) == "running")


def test_disks_are_counted_of_those_that_run(bench: Bench, tmp_path: Path) -> None:
    runs = {"one": bench.launch(bench.plan("one")), "other": bench.launch(bench.plan("other")), "gone": tmp_path / "run"}
    first = bench.engine.disk_counts(runs)
    assert set(first) <= {"one", "other"}, "who answers too late is left out"
    again = bench.engine.disk_counts(runs)
    for name in set(first) & set(again):
        assert first[name].reads <= again[name].reads, "counters only grow"


@pytest.mark.parametrize("what", ["head", "layer", "kernel", "initrd"])
def test_a_missing_file_is_named_and_nothing_is_left(bench: Bench, what: str) -> None:
    plan = bench.plan()
    head, gone = plan.disks[0].head, plan.folder / "gone"
    present = plan.folder / "present"
    present.write_bytes(b"")
    changes: dict[str, dict[str, Any]] = {
        "head": {"disks": (DiskPlan("disk0", LayerFile(gone)),)},
        "layer": {"disks": (DiskPlan("disk0", head, (LayerFile(gone),)),)},
        "kernel": {"boot": DirectBoot(gone)},
        "initrd": {"boot": DirectBoot(present, gone)},
    }
    with pytest.raises(DamagedRecord, match="gone is missing"):
        bench.launch(bench.plan(**changes[what]))
    assert not (plan.folder / names.RUN).exists()


def test_more_than_the_board_holds_is_refused(bench: Bench) -> None:
    plan = bench.plan()
    disks = tuple(DiskPlan(f"disk{index}", plan.disks[0].head) for index in range(bench.engine.features.most_disks + 1))
    with pytest.raises(UsageError):
        bench.launch(bench.plan(disks=disks))
    assert not (plan.folder / names.RUN).exists()


def test_disks_are_held_to_rates_and_let_go(bench: Bench, eventually: Eventually) -> None:
    run = bench.launch(bench.plan())
    for limits in (Limits(disk_rate=1 << 20, disk_rate_burst=8 << 20, burst_time=3, disk_iops=100), Limits()):
        bench.engine.throttle(run, ["disk0"], throttle_limits(limits))
    eventually(lambda: state(run) == "running")


def test_hardware_once_chosen_is_kept(bench: Bench) -> None:
    board = bench.engine.choose_board("amd64")
    assert bench.engine.choose_board("amd64", board) == board


def test_an_architecture_it_cannot_run(bench: Bench) -> None:
    with pytest.raises(HostLacks):
        bench.engine.choose_board("m68k")


@pytest.mark.full  # nobody is in the machine who would say that he has seen a piece, so each is waited for
def test_cpus_and_memory_are_plugged_in(bench: Bench) -> None:
    engine, plan = bench.engine, bench.plan()
    run = bench.launch(plan)
    assert engine.hardware(run) == Hardware((0,))
    engine.plug_cpu(run, plan.board, plan.cpus, 3)
    dimm = Dimm("0a1b2c3d", 2, PIECE)
    engine.plug_memory(run, dimm)
    found = engine.hardware(run)
    assert found.cpus == (0, 3)
    assert list(found.pieces) == [dimm.name]
    assert found.pieces[dimm.name] >= 4 * GIB
    assert found.pieces[dimm.name] % PIECE == 0


def test_to_pull_what_is_not_there_is_fine(bench: Bench) -> None:
    run = bench.launch(bench.plan())
    bench.engine.pull_cpu(run, 5)
    bench.engine.pull_memory(run, Dimm("0a1b2c3d", 0, PIECE))
    assert bench.engine.hardware(run) == Hardware((0,))


def test_it_goes_on_with_the_pieces_it_is_told_of(bench: Bench) -> None:
    """As a machine does whose state is loaded: they are there from the first instant."""
    dimms = (Dimm("0a1b2c3d", 1, PIECE, 4 * GIB), Dimm("4e5f6071", 0, 2 * PIECE, 4 * GIB + PIECE))
    run = bench.launch(bench.plan(cpus=2, present=(0, 2, 5), dimms=dimms))
    found = bench.engine.hardware(run)
    assert found.cpus == (0, 2, 5)
    assert dict(found.pieces) == {dimm.name: dimm.address for dimm in dimms}


def test_a_machine_that_has_ended_has_no_hardware(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(MachineEnded):
        bench.engine.hardware(tmp_path / "run")


def test_a_machine_for_forks_has_no_balloon(bench: Bench) -> None:
    plan = bench.plan()
    run = bench.launch(bench.plan(board=replace(plan.board, balloon=False)))
    with pytest.raises(GuestError) as raised:
        bench.engine.balloon(run, 96 * MIB)
    assert raised.value.code == "no_balloon"
