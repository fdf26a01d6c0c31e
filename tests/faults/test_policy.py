"""What this host's owner does not allow is refused before anything is done: what is free, what is asked for, what would fit."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import insula
from insula.errors import HostLacks, UsageError
from insula.host.scheduling import online_cpus
from insula.model.units import GIB
from insula.resources.policy import FILE
from tests.framework.doors import run_cli

pytestmark = pytest.mark.guest


@pytest.fixture
def policy(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.delenv("INSULA_OVERCOMMIT", raising=False)
    yield home / FILE
    (home / FILE).unlink(missing_ok=True)


def _free(home: Path) -> int:
    room = os.statvfs(home)
    return room.f_bavail * room.f_frsize


def test_disks_are_counted_with_all_they_may_grow_by(home: Path, tiny: str, name: str, policy: Path) -> None:
    here = insula.connect(home)
    half = _free(home) // 2 // GIB * GIB
    assert half > GIB
    policy.write_text("disk-overcommit = 1\n")
    machine = here.create(tiny, name=name, disk=half, network="none")
    assert machine.state == "stopped"
    for make in (
        lambda: here.create(tiny, name="refused", disk=half + 2 * GIB, network="none"),
        lambda: here.run(tiny, name="refused", disk=half + 2 * GIB, network="none"),
    ):
        with pytest.raises(HostLacks) as error:
            make()
        assert error.value.code == "no_space"
        assert "free" in error.value.message
        assert "would fit" in (error.value.hint or "")
        assert str(policy) in (error.value.hint or "")
    assert [each.name for each in here.list() if each.name == "refused"] == []
    policy.write_text("disk-overcommit = 3\n")
    here.create(tiny, name=f"{name}-2", disk=half + 2 * GIB, network="none").delete()


def test_cpus_are_counted(home: Path, tiny: str, name: str, policy: Path) -> None:
    here = insula.connect(home)
    there = len(online_cpus())
    policy.write_text("cpu-overcommit = 1\n")
    machine = here.create(tiny, name=name, cpus=there + 1, network="none")
    with pytest.raises(HostLacks) as error:
        machine.start()
    assert error.value.code == "no_cpus"
    assert f"needs {there + 1} CPUs" in error.value.message
    assert "would fit" in (error.value.hint or "")
    assert machine.state == "stopped"


def test_the_policy_is_told_and_a_bad_one_stops_everything(home: Path, tiny: str, policy: Path) -> None:
    facts = {fact["name"]: fact for fact in json.loads(run_cli(home, "doctor", "--json").stdout)["facts"]}
    assert "by what is usual" in facts["policy"]["detail"]
    policy.write_text("cpu-overcommit = 4\ndisc-overcommit = 2\n")
    fact = {fact["name"]: fact for fact in json.loads(run_cli(home, "doctor", "--json").stdout)["facts"]}["policy"]
    assert fact["state"] == "missing"
    assert "line 2: there is no 'disc-overcommit'" in fact["detail"]
    images = sorted(os.listdir(home / "images"))
    for image in (tiny, "debian"):  # nor is an image built first
        with pytest.raises(UsageError) as error:
            insula.connect(home).create(image, name="never", network="none")
        assert error.value.code == "bad_policy"
    assert sorted(os.listdir(home / "images")) == images
