"""Keepers that hang, lie or talk nonsense: every command ends in bounded time with a clear error, and no machine is for ever."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import insula
from insula.store import names
from tests.framework.doors import cli_environment, run_cli
from tests.framework.processes import processes_of

pytestmark = [pytest.mark.guest, pytest.mark.limit(120)]

ROOT = Path(__file__).parents[2]
# What each of these may take: the longest bound of the product, and the slowness of a busy host.
_PATIENCE = 45.0
_MANNERS = [
    "silent",
    "garbage",
    "flood",
    *(pytest.param(each, marks=pytest.mark.full) for each in ("greets", "hangup", "yes", "deaf", "claims")),
]
# How `exec` calls it.
_SAID = {
    "silent": "keeper_silent",
    "garbage": "garbled",
    "flood": "keeper_floods",
    "greets": "keeper_floods",
    "hangup": "keeper_gone",
}


@contextlib.contextmanager
def liar(run: Path, manner: str) -> Iterator[None]:
    """A process that serves ``run`` in a manner of tests.faults.liar."""
    words = [sys.executable, "-m", "tests.faults.liar", str(run), manner]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=cli_environment(run)) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        try:
            yield
        finally:
            child.kill()


def _bounded(home: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command line that must end by itself in time, and well."""
    done = run_cli(home, *words, timeout=_PATIENCE)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    assert b"\x1b" not in done.stdout + done.stderr
    return done


def _refusal(done: subprocess.CompletedProcess[bytes]) -> str:
    code: str = json.loads(done.stderr.splitlines()[-1])["code"]
    return code


@pytest.mark.parametrize("manner", _MANNERS)
def test_no_command_waits_for_a_lying_keeper_without_end(home: Path, tiny: str, name: str, manner: str, tmp_path: Path) -> None:
    insula.connect(home).create(tiny, name=name, memory="128M", network="none")
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    others = [
        ("exec", "--json", name, "--", "true"),
        ("copy", str(tmp_path / "file"), f"{name}:/root/"),
        ("copy", f"{name}:/etc", str(tmp_path)),
        ("pause", name),
        ("console", name),
        ("stop", "--json", "--timeout", "1", name),
        ("delete", "--json", "--force", name),
    ]
    with liar(home / "machines" / name / names.RUN, manner), ThreadPoolExecutor(len(others)) as pool:
        _look(home, name)
        ends = list(pool.map(lambda words: _bounded(home, *words), others))
        if manner not in ("yes", "claims"):  # these can make us believe that something was done in the guest, as any guest can
            assert [words for words, done in zip(others, ends, strict=True) if done.returncode == 0] == []
        if manner in _SAID:
            assert _refusal(ends[0]) == _SAID[manner]
        assert _refusal(ends[-1]) == "keeper_stuck"
        assert _refusal(ends[-2]) in ("keeper_stuck", "busy")
        assert _refusal(_bounded(home, "delete", "--json", name)) == "wrong_state"
    assert run_cli(home, "delete", name).returncode == 0


def _look(home: Path, name: str) -> None:
    """Looking waits for nobody."""
    began = time.monotonic()
    for words in (["list", "--json"], ["show", "--json", name], ["logs", name], ["events", name]):
        done = _bounded(home, *words)
        assert done.returncode == 0, done.stderr.decode()
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("way_out", "porter_lives"),
    [
        pytest.param(("stop", "--timeout", "1"), True, marks=pytest.mark.full),
        pytest.param(("stop", "--force"), False, marks=pytest.mark.full),
        (("delete", "--force"), True),
        (("delete", "--force"), False),
    ],
)
def test_a_keeper_that_hangs_is_ended_from_outside(
    home: Path, running: str, way_out: tuple[str, ...], porter_lives: bool
) -> None:
    found = processes_of(home / "machines" / running)
    os.kill(found["keeper"], signal.SIGSTOP)
    if not porter_lives:
        os.kill(found["porter"], signal.SIGKILL)
    descriptors = [os.pidfd_open(found[each]) for each in ("keeper", "qemu")]
    done = _bounded(home, *way_out, running)
    assert done.returncode == 0, done.stderr.decode()
    for descriptor in descriptors:
        assert select.select([descriptor], [], [], 0)[0], "a process goes on"
        os.close(descriptor)
