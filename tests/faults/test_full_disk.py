"""A full disk under the state folder: clear errors, nothing left, nothing harmed, and every way out of it still open."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.host.watch import Watch
from insula.store import names
from tests.faults.small_disk import SmallDisk, home_on_small_disk

pytestmark = [pytest.mark.root, pytest.mark.guest, pytest.mark.limit(120)]

# Root's machines have a user of their own, an ordinary user's have his: what may be written, and by whom, differs.
ROOT_OR_NOT = pytest.mark.parametrize(
    "disk",
    [pytest.param(False, id="root"), pytest.param(True, id="rootless", marks=pytest.mark.full)],
    indirect=True,
)
_SHAPE = ("--memory", "128M", "--network", "none")


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path, home: Path, tiny: str) -> Iterator[SmallDisk]:
    with home_on_small_disk(tmp_path / "small", "300m", home, rootless=getattr(request, "param", False)) as disk:
        yield disk


def _machines(disk: SmallDisk) -> list[str]:
    return sorted(os.listdir(disk.seen / "machines"))


def _wait_state(disk: SmallDisk, name: str, state: str) -> dict[str, object]:
    """Until the machine is in ``state``: each change of the keeper's record is a reason to look again."""
    with Watch() as watch:
        watch.add(disk.seen / "machines" / name / names.RUN)
        while (machine := disk.list()[name])["state"] != state:
            assert watch.wait_change(timeout=60), f"{name} did not become {state}: {machine}"
    return machine


@ROOT_OR_NOT
def test_with_no_room_nothing_is_made_and_nothing_harmed(disk: SmallDisk) -> None:
    disk.do("create", "--name", "old", *_SHAPE, "tiny")
    disk.fill()
    assert disk.refusal("create", "--name", "new", *_SHAPE, "tiny") == (1, "no_space")
    assert disk.refusal("run", "--name", "new", *_SHAPE, "tiny") == (125, "no_space")
    assert disk.refusal("start", "old") == (1, "no_space")
    assert _machines(disk) == ["old"]
    assert disk.list()["old"]["state"] == "stopped"
    assert not (disk.seen / "machines/old" / names.RUN).exists()
    disk.empty()
    disk.do("start", "old")
    assert disk.do("exec", "old", "--", "echo", "fine") == b"fine\n"


def test_a_stopped_machine_can_be_deleted_to_make_room(disk: SmallDisk) -> None:
    disk.do("create", "--name", "old", *_SHAPE, "tiny")
    disk.fill()
    disk.do("rename", "old", "older")
    disk.do("delete", "older")
    assert _machines(disk) == []


@ROOT_OR_NOT
def test_a_guest_that_fills_the_disk_is_paused_and_goes_on_once_there_is_room(disk: SmallDisk) -> None:
    disk.do("run", "--name", "big", *_SHAPE, "tiny")
    assert (disk.seen / "machines/big" / names.RUN / names.KEEPER_SOCKET).stat().st_uid == disk.uid
    disk.fill(leave=6 << 20)
    script = "yes 0123456789 | head -c 12000000 >/root/big; sync; md5sum </root/big"
    with disk.begun("exec", "big", "--", "sh", "-c", script) as writer:
        assert _wait_state(disk, "big", "paused")["reason"] == "no-space"
        assert b"paused" in disk.do("list")
        assert b"no-space" in disk.do("list")
        assert b"paused (no-space)" in disk.do("show", "big")
        assert disk.refusal("exec", "big", "--", "true") == (125, "wrong_state")
        assert disk.refusal("resume", "big") == (1, "no_space")  # too early: it is paused again, and nothing is lost
        assert disk.list()["big"]["reason"] == "no-space"
        disk.empty()
        disk.do("resume", "big")
        assert writer.communicate(timeout=60)[0] == b"ff341bb405ef612a12d35f9203be639b  -\n"
    assert disk.list()["big"]["reason"] is None


@pytest.mark.parametrize(
    "way_out",
    [
        pytest.param(("stop", "--timeout", "2"), marks=pytest.mark.full),
        pytest.param(("stop", "--force"), marks=pytest.mark.full),
        ("delete", "--force"),
    ],
)
def test_a_machine_on_a_full_disk_can_be_ended(disk: SmallDisk, way_out: tuple[str, ...]) -> None:
    disk.do("run", "--name", "big", *_SHAPE, "tiny")
    disk.fill(leave=2 << 20)
    with disk.begun("exec", "big", "--", "sh", "-c", "yes | head -c 12000000 >/root/big; sync") as writer:
        _wait_state(disk, "big", "paused")
        disk.fill()
        disk.do(*way_out, "big")
        assert writer.wait(30) == 125
    if way_out[0] == "delete":
        assert _machines(disk) == []
    else:
        assert disk.list()["big"]["state"] == "stopped"
        # Asked politely the guest runs on to shut down, and may come to its end before it writes something new.
        reasons = {"disk-full"} if "--force" in way_out else {"disk-full", "guest-shutdown"}
        assert disk.list()["big"]["ended"]["reason"] in reasons
        disk.empty()
        disk.do("start", "big")
        assert disk.do("exec", "big", "--", "echo", "fine") == b"fine\n"


@pytest.mark.full
def test_a_machine_that_goes_on_from_memory_on_a_tmpfs_outlives_its_filling(disk: SmallDisk) -> None:
    """There even what is only read of a file's holes takes room: it is taken before the machine goes on, or it is refused."""
    disk.do("run", "--cold", "--name", "big", *_SHAPE, "tiny")
    disk.do("snapshot", "create", "big@base")
    disk.fill(leave=40 << 20)
    assert disk.refusal("fork", "--name", "small", "big@base") == (125, "no_space")
    assert _machines(disk) == ["big"]
    disk.empty()
    disk.do("fork", "--name", "small", "big@base")
    disk.fill(leave=4 << 20)  # for its disk
    assert (
        disk.do("exec", "small", "--", "sh", "-c", "dd if=/dev/zero of=/run/much bs=1M count=38; wc -c < /run/much")
        == b"39845888\n"
    )
    assert disk.list()["small"]["state"] == "running"
