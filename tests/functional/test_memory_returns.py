"""Memory that a guest frees comes back to the host, from a machine that booted; a fork says that from it none does. A guest
that has too little is told as such."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

import insula
from insula.errors import GuestError
from insula.host.memory import private_bytes
from insula.model.units import MIB
from tests.framework.doors import run_cli

pytestmark = pytest.mark.limit(400)

_BLOB = 100 * MIB
_PATIENCE = 120.0  # seconds; Linux reports free pages two seconds after they became so
_GATHER = "if [ -e compact_memory ]; then echo 1 > compact_memory; fi"
_FILL = (
    "mkdir -p /dev/shm; mountpoint -q /dev/shm || mount -t tmpfs none /dev/shm; mount -o remount,size=90% /dev/shm;"
    "head -c 1000000 /dev/urandom > /dev/shm/piece; n=0;"
    f"while [ $n -lt {_BLOB // 1000000} ]; do n=$((n+1)); cat /dev/shm/piece; done > /dev/shm/blob"
)


def _owned(machine: insula.Machine) -> int:
    """Bytes that nobody but its QEMU has."""
    return max(private_bytes(pid) for pid in machine.show().process.values())


@pytest.mark.parametrize("image", ["tiny", pytest.param("debian", marks=pytest.mark.full)])
def test_what_a_booted_guest_frees_returns(home: Path, request: pytest.FixtureRequest, image: str) -> None:
    machine = insula.connect(home).create(request.getfixturevalue(image), name="giver", memory="512M", network="none")
    try:
        machine.start()
        # What a system takes while it comes up is nothing that it frees, and the balloon's driver comes with it.
        machine.exec("sh", "-c", "command -v systemctl > /dev/null && systemctl is-system-running --wait")
        assert machine.show().returns.startswith("at once")
        machine.exec("sh", "-c", _FILL, check=True)
        full = _owned(machine)
        # Linux reports what is free in pieces of 2 MiB: how much that is depends on what else lies between.
        machine.exec("sh", "-c", f"rm /dev/shm/blob; cd /proc/sys/vm; echo 3 > drop_caches; {_GATHER}", check=True)
        deadline = time.monotonic() + _PATIENCE
        while _owned(machine) > full - _BLOB // 2:
            assert time.monotonic() < deadline, f"of {full} bytes {_owned(machine)} are left"
            time.sleep(0.2)  # between two looks: there is no event for it
    finally:
        machine.delete(force=True)


def test_a_fork_says_that_nothing_returns(home: Path, tiny: str) -> None:
    with insula.connect(home).run(tiny, memory="128M", network="none") as machine:
        assert machine.show().returns.startswith("only when it ends")


def test_a_guest_that_runs_out_of_memory_is_told_as_such(home: Path, tiny: str, name: str) -> None:
    machine = insula.connect(home).run(tiny, name=name, memory="96M", network="none")
    # What is promised is more than there is, and is taken piece by piece.
    ended = machine.exec("sh", "-c", "echo 1 > /proc/sys/vm/overcommit_memory; exec tail -c 400000000 /dev/zero")
    assert ended.code == 128 + signal.SIGKILL
    assert "the guest has run out of memory: its kernel has ended a program" in ended.why
    with pytest.raises(GuestError, match="run out of memory"):
        ended.check()
    done = run_cli(home, "exec", name, "--", "sh", "-c", "kill -9 $$")
    assert done.returncode == 128 + signal.SIGKILL
    assert b"has run out of memory" in done.stderr
    assert machine.exec("sh", "-c", "kill -TERM $$").why == ""
