"""Saving a machine and going on from what was saved, as engines/base.py promises it."""

from __future__ import annotations

import json
import os
import resource
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from insula.disks.overlays import create_overlay
from insula.engines.base import DiskPlan, LaunchPlan, LayerFile, LoadPlan, Method, NewHead, Saved, SaveOrder
from insula.engines.qemu import changed
from insula.engines.qemu.changed import parse_rams
from insula.engines.qemu.engine import QemuEngine
from insula.engines.qemu.memory import MAIN
from insula.engines.qemu.monitor import query_status
from insula.engines.qemu.pagemap import own_runs
from insula.engines.qemu.qmp import Monitor
from insula.isolation.inhabitants import inhabitants
from insula.model.units import KIB, MIB
from insula.operations.capture import protect, protect_memory
from insula.store import names
from tests.contract.conftest import Bench
from tests.framework.processes import written_files

pytestmark = [pytest.mark.guest, pytest.mark.limit(120)]

Eventually = Callable[[Callable[[], bool]], None]


class Life:
    """A machine with one disk, as it is saved and as others go on from that."""

    def __init__(self, bench: Bench, plan: LaunchPlan) -> None:
        self.bench, self.plan = bench, plan
        self.run = bench.launch(plan)
        self.saves = 0

    def new_head(self, folder: Path) -> NewHead:
        return NewHead("disk0", len(self.plan.disks[0].layers) + 1, folder / "head.qcow2")

    def save(
        self,
        *,
        go_on: bool = True,
        at_instant: Callable[[], None] = lambda: None,
        switched: Callable[[], None] | None = None,
        begun: Callable[[Saved, Path], None] | None = None,
    ) -> tuple[Saved, Path]:
        """What was done, and the folder of the files."""
        self.saves += 1
        former = self.plan.disks[0].head.path
        folder = self.plan.folder / f"saved{self.saves}"
        folder.mkdir()
        layer = folder / "layer.qcow2"
        os.link(former, layer)
        create_overlay(self.new_head(folder).path, 16 * MIB)
        order = SaveOrder(
            uuid=self.plan.uuid, memory=folder / names.MEMORY, state=folder / names.STATE, machine=self.plan.board.machine,
            size=self.plan.memory, heads=(self.new_head(folder),), layers={"disk0": layer}, at_instant=at_instant,
            switched=switched or (folder / "switched").touch, go_on=go_on,
            begun=(lambda saved: begun(saved, folder)) if begun else None,
        )  # fmt: skip
        saved = self.bench.engine.save(self.run, order)
        protect(folder, str(uuid.uuid4()), memory=saved.method != "changed-pages")
        return saved, folder

    def follow(self, folder: Path) -> None:
        """What a failed save left: the disk is in its new head, upon one layer more."""
        (disk,) = self.plan.disks
        layers = (*disk.layers, LayerFile(folder / "layer.qcow2"))
        self.plan = msgspec.structs.replace(self.plan, disks=(DiskPlan("disk0", LayerFile(folder / "head.qcow2"), layers),))

    def child(self, name: str, saved: Saved, folder: Path, *, ahead: bool = False) -> Life:
        plan = self.bench.plan(name)
        layers = (*self.plan.disks[0].layers, LayerFile(folder / "layer.qcow2"))
        memory = folder / names.MEMORY if saved.offset is not None else None
        return Life(
            self.bench,
            self.bench.plan(
                name,
                board=self.plan.board,
                disks=(DiskPlan("disk0", plan.disks[0].head, layers),),
                load=LoadPlan(None if ahead else folder / names.STATE, memory, saved.offset or 0),
            ),
        )

    def state(self) -> str:
        return str(json.loads((self.run / names.STATUS).read_bytes())["state"])


@pytest.fixture
def parent(bench: Bench, eventually: Eventually) -> Life:
    life = Life(bench, bench.plan())
    eventually(lambda: life.state() == "running")
    return life


def test_a_machine_is_saved_and_goes_on(parent: Life, eventually: Eventually) -> None:
    saved, folder = parent.save()
    assert saved.pause > 0
    assert (folder / "switched").exists()
    assert (folder / names.STATE).stat().st_size > 0
    assert (folder / names.MEMORY).exists() == (saved.offset is not None)
    eventually(lambda: parent.state() == "running")


def test_what_is_loaded_stands_until_it_is_told_to_go_on(bench: Bench, parent: Life, eventually: Eventually) -> None:
    child = parent.child("child", *parent.save())
    eventually(lambda: child.state() == "paused")
    bench.engine.resume(child.run)
    eventually(lambda: child.state() == "running")


@pytest.mark.parametrize("generation", [1, 2])
def test_a_machine_is_launched_on_what_is_still_being_saved(
    bench: Bench, parent: Life, eventually: Eventually, generation: int
) -> None:
    """Of its memory and its disk it takes nothing before it loads: then it goes on as one does that was launched afterwards."""
    if generation == 2:
        parent = parent.child("between", *parent.save())
        bench.engine.resume(parent.run)
        eventually(lambda: parent.state() == "running")
    begun: list[tuple[Saved, Life]] = []

    def launch(saved: Saved, folder: Path) -> None:
        if saved.method != "changed-pages":
            protect_memory(folder / names.MEMORY, str(uuid.uuid4()))
        begun.append((saved, parent.child("child", saved, folder, ahead=True)))

    saved, folder = parent.save(begun=launch)
    ((told, child),) = begun
    assert (told.method, told.offset, told.hardware) == (saved.method, saved.offset, saved.hardware)
    if bench.engine.name == "qemu":
        assert mapped_pages(child) == [], "it wrote to what it maps before that was complete"
    bench.engine.load(child.run, folder / names.STATE, folder / names.MEMORY)
    bench.engine.resume(child.run)
    eventually(lambda: child.state() == "running")
    again, copy = child.save()
    assert again.offset == saved.offset
    assert (copy / names.MEMORY).read_bytes() == (folder / names.MEMORY).read_bytes()
    assert bench.engine.hardware(child.run) == saved.hardware


def mapped_pages(life: Life) -> list[tuple[int, int]]:
    """The pages of the file that is its memory which a QEMU has of its own."""
    with Monitor(life.run / names.QMP_SOCKET) as monitor:
        rams = parse_rams(monitor.execute("human-monitor-command", {"command-line": "info ramblock"}))
    (main,) = (ram for ram in rams if ram.name == MAIN)
    (pid,) = (pid for pid, name in inhabitants(life.plan.folder, life.plan.uuid).items() if name.startswith("qemu"))
    pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
    try:
        return own_runs(pagemap, main.address, main.length)
    finally:
        os.close(pagemap)


def test_a_loaded_machine_is_saved_as_what_it_was_loaded_from_and_changes(
    bench: Bench, parent: Life, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To any depth the one memory file is shared; it is never written."""
    monkeypatch.setattr(changed, "_PAUSE", 60.0)  # however busy this computer is
    saved, folder = parent.save()
    assert saved.method == "mapped-ram"
    inode, content = (folder / names.MEMORY).stat().st_ino, (folder / names.MEMORY).read_bytes()
    life = parent
    for generation in range(3):
        life = life.child(f"child{generation}", saved, folder)
        bench.engine.resume(life.run)
        eventually(lambda: life.state() == "running")  # noqa: B023 - called before the next turn
        saved, folder = life.save()
        assert (saved.method, (folder / names.MEMORY).stat().st_ino) == ("changed-pages", inode)
        assert 0 < saved.pause < 1
        eventually(lambda: life.state() == "running")  # noqa: B023 - as above
    assert (folder / names.MEMORY).read_bytes() == content


def test_a_machine_without_the_file_it_was_loaded_from_is_saved_whole(bench: Bench, parent: Life, eventually: Eventually) -> None:
    if bench.engine.name == "fake":
        pytest.skip("it has one way only")
    saved, folder = parent.save()
    child = parent.child("child", saved, folder)
    (child.run / names.MEMORY).unlink()
    again, other = child.save()
    assert again.method == "mapped-ram"
    assert (other / names.MEMORY).stat().st_ino != (folder / names.MEMORY).stat().st_ino


def test_a_paused_machine_stays_paused_and_may_be_saved_again(bench: Bench, parent: Life, eventually: Eventually) -> None:
    child = parent.child("child", *parent.save())
    eventually(lambda: child.state() == "paused")
    saved, folder = child.save()
    assert (child.state(), saved.pause) == ("paused", 0)
    grandchild = child.child("grandchild", saved, folder)
    for life in (child, grandchild):
        bench.engine.resume(life.run)
        eventually(lambda: life.state() == "running")  # noqa: B023 - called before the next turn


def test_one_that_is_to_end_is_left_standing(parent: Life, eventually: Eventually) -> None:
    parent.save(go_on=False)
    eventually(lambda: parent.state() == "paused")


def test_after_a_failure_a_guest_that_ran_runs_on(bench: Bench, parent: Life, eventually: Eventually) -> None:
    def fail() -> None:
        raise OSError("no")

    child = parent.child("child", *parent.save())
    bench.engine.resume(child.run)
    eventually(lambda: child.state() == "running")
    for life in (parent, child):
        with pytest.raises(OSError, match="no"):
            life.save(at_instant=fail)
        assert not (life.plan.folder / f"saved{life.saves}" / "switched").exists()
        eventually(lambda: life.state() == "running")  # noqa: B023 - called before the next turn


class _DiedError(Exception):
    """What stands for the end of a command at once."""


def _die() -> None:
    raise _DiedError


@pytest.mark.parametrize("dies", [False, True], ids=["", "dies"])
@pytest.mark.parametrize("before", ["running", "paused"])
@pytest.mark.parametrize("generation", [0, 1], ids=["booted", "loaded"])
def test_qemu_cannot_write_former_heads_any_more(
    bench: Bench, parent: Life, eventually: Eventually, generation: int, before: str, dies: bool
) -> None:
    """Also when a command died right after the disks had switched, and another lets QEMU follow the record."""
    if bench.engine.name == "fake":
        pytest.skip("it has no process")
    life = parent.child("child", *parent.save()) if generation else parent
    if before == "running":
        bench.engine.resume(life.run)
        eventually(lambda: life.state() == "running")
    else:
        bench.engine.pause(life.run)
    folder = life.plan.folder / f"saved{life.saves + 1}"
    if dies:
        with pytest.raises(_DiedError):
            life.save(switched=_die)
        heads, layers = (life.new_head(folder),), {"disk0": folder / "layer.qcow2"}
        bench.engine.switch_heads(life.run, heads, layers, go_on=before == "running")
    else:
        life.save()
    (qemu,) = [pid for pid, name in inhabitants(life.plan.folder, life.plan.uuid).items() if name.startswith("qemu")]
    disks = {path for path in written_files(qemu).values() if path.startswith(str(bench.home.root)) and ".qcow2" in path}
    assert disks == {str(folder / "head.qcow2")}


# -- where memory is written behind the guest ---------------------------------------------------------------------------------
TRACKED = pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/userfaultfd").exists(), reason="this host lends no userfaultfd")


def _only(bench: Bench, *ways: Method) -> None:
    """The engine takes memory in these ways alone, as one does whose QEMU knows no others."""
    if bench.engine.name == "fake":
        pytest.skip("it has one way only")
    bench.engine = QemuEngine(bench.home, frozenset(ways))


@TRACKED
def test_memory_is_written_behind_the_guest_where_there_is_nothing_better(bench: Bench, eventually: Eventually) -> None:
    _only(bench, "background-snapshot")
    life = Life(bench, bench.plan())
    for generation in range(2):
        eventually(lambda: life.state() == "running")  # noqa: B023 - called before the next turn
        stood: list[str] = []
        saved, folder = life.save(at_instant=lambda: stood.append(query_status(life.run / names.QMP_READ_SOCKET).status))  # noqa: B023
        assert (saved.method, saved.offset, stood) == ("background-snapshot", None, ["paused"])
        assert saved.pause > 0
        assert not (folder / names.MEMORY).exists()
        eventually(lambda: life.state() == "running")  # noqa: B023 - called before the next turn
        life = life.child(f"child{generation}", saved, folder)
        bench.engine.resume(life.run)


@TRACKED
def test_a_save_behind_the_guest_that_fails_leaves_it_running(bench: Bench, eventually: Eventually) -> None:
    _only(bench, "background-snapshot")
    life = Life(bench, bench.plan())
    eventually(lambda: life.state() == "running")
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400 * KIB, former[1]))  # a file may be no longer: what a full disk is to others
    try:
        with pytest.raises(OSError, match="too large"):
            life.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    eventually(lambda: life.state() == "running")
    life.follow(life.plan.folder / "saved1")  # the disks have switched before that
    saved, _ = life.save()
    assert saved.method == "background-snapshot"


def test_a_guest_stands_until_all_is_written_where_nothing_else_can_be(bench: Bench, eventually: Eventually) -> None:
    """Its QEMU was lent no userfaultfd, so it refuses."""
    _only(bench)
    life = Life(bench, bench.plan())
    _only(bench, "background-snapshot")
    eventually(lambda: life.state() == "running")
    saved, folder = life.save()
    assert (saved.method, saved.offset) == ("stream", None)
    eventually(lambda: life.state() == "running")
    child = life.child("child", saved, folder)
    bench.engine.resume(child.run)
    eventually(lambda: child.state() == "running")
