"""Several commands at one machine at once: one of them does it, the others are told so, and force goes before all."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import insula
from insula.store import names
from tests.framework.doors import cli_at, popen_cli, run_cli
from tests.framework.processes import processes_of

pytestmark = [pytest.mark.guest, pytest.mark.limit(120)]

_SHAPE = ("--memory", "128M", "--network", "none")


def _mute(home: Path, name: str, *, agent: bool) -> insula.Machine:
    """A machine whose guest never answers; ``agent``: whether its record says that it will."""
    machine = insula.connect(home).create("tiny", name=name, memory="128M", network="none")
    path = home / "machines" / name / names.RECORD
    record = json.loads(path.read_bytes())
    record["boot"]["cmdline"] += " insula.init=/bin/sh"
    record["boot"]["agent"] = agent
    path.write_text(json.dumps(record))
    return machine


def test_two_processes_that_run_one_name_make_one_machine(home: Path, tiny: str, name: str) -> None:
    words = ["run", "--json", "--detach", "--name", name, *_SHAPE, tiny]
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(popen_cli(home, *words, stderr=subprocess.PIPE)) for _ in range(3)]
        ends = [(child.communicate(timeout=60), child.returncode) for child in children]
    assert sorted(status for _, status in ends) == [0, 125, 125]
    codes = [json.loads(errors.splitlines()[-1])["code"] for (_, errors), status in ends if status]
    assert codes == ["name_taken", "name_taken"]
    assert insula.connect(home).get(name).exec("echo", "one").stdout == "one\n"
    assert [entry.name for entry in (home / "machines").iterdir() if entry.name.startswith(".")] == []


@pytest.mark.parametrize("way", ["stop", "delete"])
def test_force_goes_before_a_start_that_waits(home: Path, tiny: str, name: str, way: str) -> None:
    machine = _mute(home, name, agent=True)
    with cli_at(home, b"wait until the guest answers", "start", name) as starting:
        busy = run_cli(home, "stop", "--json", name)
        assert json.loads(busy.stderr.splitlines()[-1])["code"] == "busy"
        assert b"start" in busy.stderr
        found = processes_of(home / "machines" / name)
        done = run_cli(home, way, "--force", name)
        assert done.returncode == 0, done.stderr.decode()
        assert starting.wait(30) == 1
        assert starting.stderr is not None
        said = starting.stderr.read()
    assert f"{name} ended while starting".encode() in said
    assert b"Traceback" not in said
    # The porter may still be there: it has become the command that cleans up.
    assert not any(Path(f"/proc/{found[each]}/cwd").exists() for each in ("keeper", "qemu"))
    if way == "delete":
        assert not (home / "machines" / name).exists()
    else:
        assert machine.state == "stopped"
        assert not (home / "machines" / name / names.RUN).exists()


def test_force_goes_before_a_run_that_waits(home: Path, tiny: str, forget: Callable[[str], None]) -> None:
    forget("raced")
    words = ["run", "--cold", "--name", "raced", *_SHAPE, tiny, "--", "true"]
    with cli_at(home, b"wait until the guest answers", *words) as running:
        assert run_cli(home, "delete", "--force", "raced").returncode == 0
        assert running.wait(30) == 125
    assert not (home / "machines" / "raced").exists()


def test_force_goes_before_a_stop_that_waits(home: Path, tiny: str, name: str) -> None:
    machine = _mute(home, name, agent=False).start()
    with cli_at(home, b"press the power button", "stop", "--timeout", "60", name) as stopping:
        done = run_cli(home, "stop", "--force", name)
        assert done.returncode == 0, done.stderr.decode()
        assert stopping.wait(30) == 0
    assert machine.state == "stopped"


def test_eight_commands_and_a_shell_at_once(home: Path, shared: str) -> None:
    script = "i=0; while [ $i -lt 200 ]; do echo $0 $i; i=$((i+1)); done"
    with contextlib.ExitStack() as stack:
        shell = stack.enter_context(popen_cli(home, "shell", shared, stdin=subprocess.PIPE))
        commands = [stack.enter_context(popen_cli(home, "exec", shared, "--", "sh", "-c", script, str(n))) for n in range(8)]
        for number, command in enumerate(commands):
            output = command.communicate(timeout=60)[0].decode().splitlines()
            assert output == [f"{number} {line}" for line in range(200)]
            assert command.returncode == 0
        assert shell.communicate(b"echo still $((40+2)); exit 3\n", timeout=60)[0] == b"still 42\n"
        assert shell.returncode == 3
