"""Processes that die, and files that are damaged, under a running machine or beside it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest

import insula
from insula.errors import AgentAbsent, AlreadyExists, DamagedRecord, HostLacks, InsulaError, MachineEnded
from insula.store import names
from tests.framework.consoles import wait_said
from tests.framework.doors import popen_cli, run_cli
from tests.framework.processes import kill_and_wait, processes_of, wait_settled

pytestmark = pytest.mark.limit(120)


@pytest.mark.parametrize(("victim", "reason"), [("qemu", "killed"), ("keeper", "killed")])
def test_a_killed_process_stops_the_machine_and_nothing_else(home: Path, running: str, victim: str, reason: str) -> None:
    machine = insula.connect(home).get(running)
    machine.exec("sh", "-c", "echo precious > /root/note; sync", check=True)
    found = processes_of(home / "machines" / running)
    kill_and_wait(found[victim], found.values())
    wait_settled(home / "machines" / running)
    assert machine.state == "stopped"
    assert machine.status.ended is not None
    assert machine.status.ended.reason == reason
    machine.start()
    assert machine.exec("cat", "/root/note").stdout == "precious\n"


def test_without_its_porter_a_machine_runs_on_and_the_next_verb_settles_it(home: Path, running: str) -> None:
    machine = insula.connect(home).get(running)
    found = processes_of(home / "machines" / running)
    kill_and_wait(found["porter"], [found["porter"]])
    assert machine.exec("echo", "still here").stdout == "still here\n"
    kill_and_wait(found["qemu"], [found["qemu"], found["keeper"]])
    assert machine.state == "stopped"
    machine.start()
    assert machine.state == "running"


def test_a_guest_without_agent_has_a_console_and_exec_says_why_not(home: Path, tiny: str, name: str) -> None:
    insula.connect(home).create(tiny, name=name, memory="128M", network="none")
    path = home / "machines" / name / names.RECORD
    record = json.loads(path.read_bytes())
    record["boot"]["cmdline"] += " insula.init=/bin/sh"
    record["boot"]["agent"] = False
    path.write_text(json.dumps(record))
    machine = insula.connect(home).get(name).start()
    with pytest.raises(AgentAbsent, match="no agent") as error:
        machine.exec("true")
    assert error.value.hint == f"use its console: insula console {name}"
    with popen_cli(home, "console", name, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdin is not None
        typed = child.stdin.fileno()
        wait_said(child, b"con1sole", lambda: os.write(typed, b"echo con$$sole\n"))
        child.kill()


def test_an_agent_that_stays_silent_is_told_in_time(home: Path, tiny: str, name: str) -> None:
    insula.connect(home).create(tiny, name=name, memory="128M", network="none")
    path = home / "machines" / name / names.RECORD
    record = json.loads(path.read_bytes())
    record["boot"]["cmdline"] += " insula.init=/bin/sh"
    path.write_text(json.dumps(record))
    with pytest.raises(AgentAbsent, match="did not answer within 6 s"):
        insula.connect(home).get(name).start(timeout=6)
    assert insula.connect(home).get(name).state == "stopped"


def test_a_qemu_that_dies_at_once_shows_its_words(home: Path, tiny: str, name: str) -> None:
    insula.connect(home).create(tiny, name=name, memory="128M", network="none")
    head = home / "machines" / name / names.DISKS / "root-0.qcow2"
    head.write_bytes(b"this is no qcow2 file" * 100)
    with pytest.raises(MachineEnded, match="not in qcow2 format"):
        insula.connect(home).get(name).start()
    assert insula.connect(home).get(name).state == "stopped"
    assert not (home / "machines" / name / names.RUN).exists()


def test_a_guest_that_panics_at_boot_is_told(home: Path, tiny: str, name: str) -> None:
    insula.connect(home).create(tiny, name=name, memory="128M", network="none")
    path = home / "machines" / name / names.RECORD
    record = json.loads(path.read_bytes())
    record["boot"]["cmdline"] += " insula.init=/bin/false"
    path.write_text(json.dumps(record))
    with pytest.raises(MachineEnded) as error:
        insula.connect(home).get(name).start()
    assert error.value.code == "guest_panic"
    assert insula.connect(home).get(name).state == "stopped"


def test_more_memory_than_there_is_is_refused(home: Path, tiny: str, name: str) -> None:
    machine = insula.connect(home).create(tiny, name=name, memory="400G", network="none")
    with pytest.raises(HostLacks) as error:
        machine.start()
    assert error.value.code == "no_memory"
    assert machine.state == "stopped"


def test_a_damaged_record_breaks_one_machine_and_says_so(home: Path, running: str, tiny: str, name: str) -> None:
    broken = home / "machines" / "broken-one"
    broken.mkdir(exist_ok=True)
    (broken / names.RECORD).write_text('{"version": 1, "id"')
    try:
        listed = {status.name: status for status in insula.connect(home).list()}
        assert listed[running].state == "running"
        assert listed["broken-one"].state == "broken"
        assert "machine.json" in (listed["broken-one"].problem or "")
        assert run_cli(home, "show", "broken-one").returncode == 0
        with pytest.raises(DamagedRecord) as error:
            insula.connect(home).get("broken-one").start()
        assert "delete --force" in (error.value.hint or "")
        assert run_cli(home, "delete", "broken-one").returncode == 1
        assert run_cli(home, "delete", "--force", "broken-one").returncode == 0
        assert not broken.exists()
    finally:
        shutil.rmtree(broken, ignore_errors=True)


def test_a_tampered_image_is_refused_before_boot(tmp_path: Path, tiny: str, home: Path) -> None:
    other = tmp_path / "home"
    other.mkdir()
    shutil.copytree(home / "images", other / "images")
    digest = json.loads((other / "images" / names.IMAGE_NAMES).read_bytes())["names"]["tiny"]
    layer = other / "images" / digest / names.ROOT_LAYER
    machine = insula.connect(other).create("tiny", name="before")
    layer.chmod(0o644)
    with open(layer, "r+b") as stream:
        stream.seek(layer.stat().st_size // 2)
        stream.write(b"evil")
    for attempt, code in (
        (lambda: insula.connect(other).create("tiny", name="x"), "image_tampered"),
        (machine.start, "layer_tampered"),
    ):
        with pytest.raises(DamagedRecord) as error:
            attempt()
        assert error.value.code == code
    assert [status.name for status in insula.connect(other).list()] == ["before"]


def test_a_changed_layer_is_refused_before_boot_also_when_its_image_is_gone(tmp_path: Path, tiny: str, home: Path) -> None:
    other = tmp_path / "home"
    other.mkdir()
    shutil.copytree(home / "images", other / "images")
    machine = insula.connect(other).create("tiny", name="web", memory="128M", network="none")
    assert run_cli(other, "image", "delete", "tiny").returncode == 0
    machine.start().stop(force=True)
    folder = other / "machines" / "web"
    noted = (folder / names.VERIFIED_LAYERS).stat().st_ino
    machine.start().stop(force=True)
    assert (folder / names.VERIFIED_LAYERS).stat().st_ino == noted  # nothing was hashed again
    kernel = next((folder / names.LAYERS).glob("*-vmlinuz"))
    kernel.chmod(0o644)
    with open(kernel, "r+b") as stream:
        stream.seek(4096)
        stream.write(b"evil")
    with pytest.raises(DamagedRecord, match="vmlinuz is not what") as error:
        machine.start()
    assert error.value.code == "layer_tampered"
    assert machine.state == "stopped"
    assert not (folder / names.RUN).exists()
    machine.delete()


def test_a_missing_layer_is_told(home: Path, tiny: str, name: str) -> None:
    machine = insula.connect(home).create(tiny, name=name, memory="128M", network="none")
    layer = next((home / "machines" / name / names.LAYERS).glob("*.qcow2"))
    layer.unlink()
    with pytest.raises(DamagedRecord, match="is missing") as error:
        machine.start()
    assert error.value.code == "layer_missing"
    command = (error.value.hint or "").removeprefix("the same file is still here, so: ")  # the image has it
    subprocess.run(["sh", "-c", command], check=True)
    assert machine.start().exec("echo", "there").stdout == "there\n"


def test_a_pid_that_is_somebody_elses_by_now_fools_nobody(home: Path, tiny: str, name: str) -> None:
    machine = insula.connect(home).create(tiny, name=name, memory="128M", network="none")
    run = home / "machines" / name / names.RUN
    run.mkdir()
    (run / names.STATUS).write_text(json.dumps({"state": "running", "agent": True, "qemu_pid": os.getpid()}))
    assert machine.state == "stopped"
    machine.start()
    assert machine.exec("true").code == 0


def test_two_runs_of_one_name_make_one_machine(home: Path, tiny: str, name: str) -> None:
    outcomes: list[object] = []

    def work() -> None:
        try:
            outcomes.append(insula.connect(home).run(tiny, name=name, memory="128M", network="none"))
        except InsulaError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(type(outcome).__name__ for outcome in outcomes) in (
        ["AlreadyExists", "Machine"],
        ["Busy", "Machine"],
    )
    assert any(isinstance(outcome, AlreadyExists) for outcome in outcomes)
    assert insula.connect(home).get(name).exec("true").code == 0


def test_a_home_with_a_path_longer_than_a_socket_allows_works(tmp_path: Path, tiny: str, home: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    shutil.copytree(home / "images", deep / "images")
    machine = insula.connect(deep).run("tiny", name="deep", memory="128M", network="none")
    assert machine.exec("echo", "hello").stdout == "hello\n"
    machine.pause().resume().delete(force=True)


def test_ctrl_c_while_a_machine_starts_undoes_it(home: Path, tiny: str) -> None:
    before = {entry.name for entry in (home / "machines").iterdir()}
    words = ["run", "--cold", "--memory", "128M", "--network", "none", tiny, "--", "true"]
    with popen_cli(home, *words, stderr=subprocess.PIPE, start_new_session=True) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if b"wait until the guest answers" in line:
                os.killpg(child.pid, signal.SIGINT)
        assert child.wait(60) == 130
    assert {entry.name for entry in (home / "machines").iterdir()} == before
