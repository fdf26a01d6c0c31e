"""A guest that floods its console, its agent's port and its disk at once: what it leaves on the host is bounded, and neither
Insula nor another machine minds."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import insula
from insula.errors import NotFound
from insula.host.files import disk_usage
from insula.host.memory import private_bytes
from insula.model.units import KIB, MIB
from insula.store import names
from tests.framework.doors import cli_environment
from tests.framework.project import ROOT

pytestmark = [pytest.mark.limit(400)]

# It writes a file of 64 MB again and again: no more comes of that than the file, and what its file system notes beside.
_DISK = 256 * MIB
# What QEMU and the keeper have beside the guest's memory, at most, whatever the guest does.
_BESIDE = 400 * MIB
_FLOOD = """
mkdir -p /flood
(while :; do cat /dev/zero; done | tr '\\0' '\\033' > /dev/ttyS0) &
(while :; do dd if=/dev/urandom of=/flood/f bs=64k count=1000 conv=notrunc 2> /dev/null; sync; done) &
(while :; do echo "$RANDOM flood" > /dev/kmsg; done) &
wait
"""


@pytest.fixture
def crowd(home: Path, tiny: str) -> Iterator[tuple[insula.Machine, insula.Machine]]:
    here = insula.connect(home)
    names_of = ("flooder", "bystander")
    try:
        flooder, bystander = (here.run(tiny, name=name, memory="128M", network="none") for name in names_of)
        yield flooder, bystander
    finally:
        for name in names_of:
            with contextlib.suppress(NotFound):
                here.get(name).delete(force=True)


@contextlib.contextmanager
def _flooding(home: Path, name: str, readers: int) -> Iterator[None]:
    """The guest floods its serial port, its kernel's log and its disk; beside that some commands print without end whose output
    nobody takes."""
    words = ["python", "-m", "insula", "exec", name, "--"]
    commands = [["sh", "-c", _FLOOD], *[["sh", "-c", "while :; do cat /dev/zero; done"]] * readers]
    with contextlib.ExitStack() as stack:
        for command in commands:
            process = subprocess.Popen(
                [*words, *command], cwd=ROOT, env=cli_environment(home), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout is not None
            stack.callback(process.stdout.close)
        yield


def _check_bounds(home: Path, flooder: insula.Machine) -> None:
    folder = home / "machines" / flooder.name
    for file in (names.CONSOLE, names.CONSOLE_OLD):
        assert (folder / file).stat().st_size <= MIB + 64 * KIB
    for file in (names.EVENTS, names.EVENTS_OLD):
        assert (folder / file).stat().st_size <= 256 * KIB + 64 * KIB
    assert (folder / names.QEMU_LOG).stat().st_size <= 128 * KIB
    assert disk_usage(folder / names.DISKS) <= _DISK
    owned = sum(private_bytes(pid) for pid in flooder.show().process.values())
    assert owned <= 128 * MIB + _BESIDE


@pytest.mark.full
@pytest.mark.parametrize("seconds", [60.0])
def test_a_guest_that_floods_everything_harms_nobody(
    home: Path, crowd: tuple[insula.Machine, insula.Machine], seconds: float
) -> None:
    flooder, bystander = crowd
    answered = 0
    with _flooding(home, flooder.name, readers=4):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert bystander.exec("echo", "well").stdout == "well\n"
            _check_bounds(home, flooder)
            answered += 1
        assert {each.name: each.state for each in insula.connect(home).list()} == {"flooder": "running", "bystander": "running"}
        assert (home / "machines" / flooder.name / names.CONSOLE_OLD).stat().st_size > 0, "its console was not flooded"
        assert flooder.exec("echo", "here").stdout == "here\n"
    assert answered > 5
    assert threading.active_count() < 20
    flooder.stop(force=True)
    assert bystander.exec("echo", "well").stdout == "well\n"
