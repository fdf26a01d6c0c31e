"""A machine's life on a real guest, through both doors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

import insula
from tests.framework.doors import Door, Refused, popen_cli, run_cli

pytestmark = pytest.mark.limit(180)

SHAPE = {"memory": "128M", "network": "none"}


def _state(door: Door, name: str) -> str:
    return next(str(machine["state"]) for machine in door.list() if machine["name"] == name)


def test_a_machine_lives_pauses_stops_and_comes_back_with_its_disk(door: Door, tiny: str, name: str) -> None:
    door.run(tiny, name, **SHAPE)
    assert _state(door, name) == "running"
    assert door.exec(name, "hostname").stdout == name.encode() + b"\n"
    assert door.exec(name, "sh", "-c", "echo kept > /root/note && sync").code == 0
    door.verb("pause", name)
    assert _state(door, name) == "paused"
    with pytest.raises(Refused) as refused:
        door.exec(name, "true")
    assert refused.value.code == "wrong_state"
    assert "resume" in (refused.value.hint or "")
    door.verb("resume", name)
    assert door.exec(name, "cat", "/root/note").stdout == b"kept\n"
    door.verb("stop", name)
    assert _state(door, name) == "stopped"
    assert door.show(name)["ended"]["reason"] in ("guest-shutdown", "stopped")
    door.verb("start", name)
    assert door.exec(name, "cat", "/root/note").stdout == b"kept\n"
    door.verb("restart", name)
    assert door.exec(name, "cat", "/root/note").stdout == b"kept\n"
    door.verb("delete", name, force=True)
    assert name not in {machine["name"] for machine in door.list()}
    assert not (door.home / "machines" / name).exists()


def test_a_created_machine_is_stopped_until_it_is_started(door: Door, tiny: str, name: str) -> None:
    door.create(tiny, name, **SHAPE)
    listed = next(machine for machine in door.list() if machine["name"] == name)
    assert list(listed)[:5] == ["name", "kind", "state", "image", "addresses"]
    assert (listed["state"], listed["image"], listed["memory"]) == ("stopped", "tiny", 128 << 20)
    shown = door.show(name)
    assert {field: shown[field] for field in listed} == listed
    assert list(shown)[: len(listed)] == list(listed)
    assert shown["firmware"] == "direct"
    with pytest.raises(Refused) as refused:
        door.exec(name, "true")
    assert refused.value.code == "wrong_state"
    door.verb("start", name)
    assert door.exec(name, "true").code == 0


def test_renaming_a_running_machine_renames_its_guest(door: Door, running: str, forget: Callable[[str], None]) -> None:
    new = f"{running}-x"
    forget(new)
    door.rename(running, new)
    assert door.exec(new, "hostname").stdout == new.encode() + b"\n"
    with pytest.raises(Refused) as refused:
        door.show(running)
    assert refused.value.code == "machine_not_found"
    door.verb("stop", new, force=True)
    assert _state(door, new) == "stopped"


def test_what_a_running_machine_does_not_allow(door: Door, shared: str) -> None:
    with pytest.raises(Refused) as refused:
        door.verb("delete", shared)
    assert refused.value.code == "wrong_state"
    assert shared in refused.value.message


def test_what_is_so_already_is_done_at_once_and_told(home: Path, shared: str, name: str, tiny: str) -> None:
    insula.connect(home).create(tiny, name=name, memory="128M", network="none")
    before = insula.connect(home).get(shared).events()
    for verb, machine, state in (("start", shared, "running"), ("resume", shared, "running"), ("stop", name, "stopped")):
        done = run_cli(home, verb, machine)
        assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"{machine} is {state} already\n", b"")
    assert run_cli(home, "stop", "--force", name).stdout.decode() == f"{name} is stopped already\n"
    assert insula.connect(home).get(shared).events() == before
    assert insula.connect(home).get(shared).start().state == "running"


def test_a_paused_machine_is_named_once_and_so_is_the_next_step(home: Path, running: str, tmp_path: Path) -> None:
    insula.connect(home).get(running).pause()
    assert run_cli(home, "pause", running).stdout.decode() == f"{running} is paused already\n"
    for words, doing in (
        (("exec", running, "--", "true"), "run a command in it"),
        (("copy", f"{running}:/etc/passwd", str(tmp_path / "x")), "copy files of it"),
        (("copy", __file__, f"{running}:/root/"), "copy files of it"),
    ):
        done = run_cli(home, *words)
        assert done.stderr.decode().splitlines() == [
            f"insula: {running} is paused: cannot {doing}",
            f"hint: to let it run on: insula resume {running}",
        ]


def test_the_guests_own_shutdown_is_known(door: Door, running: str) -> None:
    with contextlib.suppress(Refused):  # the guest may be gone before it answers
        door.exec(running, "poweroff")
    _wait_stopped(door, running)
    assert door.show(running)["ended"]["reason"] == "guest-shutdown"


def test_a_panic_of_the_guest_is_known(door: Door, running: str) -> None:
    door.exec(running, "sh", "-c", "echo 1 > /proc/sys/kernel/sysrq; (sleep 0.2; echo c > /proc/sysrq-trigger) >/dev/null 2>&1 &")
    _wait_stopped(door, running)
    assert door.show(running)["ended"]["reason"] == "guest-panic"


def test_a_reboot_of_the_guest_keeps_the_machine(door: Door, running: str) -> None:
    before = door.exec(running, "cat", "/proc/sys/kernel/random/boot_id").stdout
    with contextlib.suppress(Refused):
        door.exec(running, "reboot")
    done = run_cli(door.home, "exec", "--wait", "60", running, "--", "cat", "/proc/sys/kernel/random/boot_id")
    while done.stdout == before or done.returncode == 125:
        done = run_cli(door.home, "exec", "--wait", "60", running, "--", "cat", "/proc/sys/kernel/random/boot_id")
    assert done.returncode == 0
    assert _state(door, running) == "running"


def _wait_stopped(door: Door, name: str) -> None:
    """Follow the machine's events until the keeper's call has settled it."""
    with popen_cli(door.home, "events", "-f", name) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if b'"event": "ended"' in line:
                break
        child.kill()


def test_run_with_a_command_leaves_no_machine(tiny: str, home: Path) -> None:
    before = {entry.name for entry in (home / "machines").iterdir()}
    words = ("run", "-q", "-i", "--memory", "128M", "--network", "none", tiny, "--", "sh", "-c", "cat; exit 7")
    done = run_cli(home, *words, data=b"hello")
    assert (done.returncode, done.stdout) == (7, b"hello")
    assert {entry.name for entry in (home / "machines").iterdir()} == before


def test_a_taken_name_is_refused(door: Door, shared: str, tiny: str) -> None:
    with pytest.raises(Refused) as refused:
        door.create(tiny, shared, **SHAPE)
    assert refused.value.code == "name_taken"


def test_an_unknown_image_offers_the_nearest(door: Door, name: str) -> None:
    with pytest.raises(Refused) as refused:
        door.create("debain", name, **SHAPE)
    assert refused.value.code == "image_not_found"
    assert "debian" in (refused.value.hint or "")
