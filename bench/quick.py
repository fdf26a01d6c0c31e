"""Commands that do next to nothing: how long they take to begin and end."""

from __future__ import annotations

import time
from pathlib import Path

from bench import ROOT
from bench.pairs import Pairs, interleave
from bench.world import INSULA, World, run_quietly, scratch
from insula.model.identity import new_identity
from insula.model.spec import MachineSpec
from insula.store import names
from insula.store.machines import RECORD_VERSION, Boot, DiskRecord, ImageUse, MachineRecord, write_machine
from insula.store.names import Home

_HAND_EXEC = str(ROOT / "bench" / "hand_exec.py")


def noop(world: World, n: int) -> Pairs:
    return interleave(
        lambda: run_quietly(INSULA, "--version"), lambda: run_quietly(world.python, "-I", "-c", "import click"), n, warm=3
    )


def list_thousand(world: World, n: int) -> Pairs:
    with scratch() as folder:
        _make_records(Home(folder), 1000, world)
        return interleave(
            lambda: run_quietly(INSULA, "list", INSULA_HOME=str(folder)), lambda: run_quietly(INSULA, "--version"), n, warm=2
        )


def _make_records(home: Home, count: int, world: World) -> None:
    """Stopped machines with all that `list` reads of one; their disks were never made."""
    home.prepare()
    board = world.board()
    for number in range(count):
        identity = new_identity()
        record = MachineRecord(
            version=RECORD_VERSION,
            id=identity.uuid,
            kind="vm",
            created=time.time(),
            image=ImageUse("debian", "0" * 64),
            spec=MachineSpec(),
            identity=identity,
            boot=Boot("disk"),
            disks=[DiskRecord("root", [f"layers/{'0' * 16}-root.qcow2"], "disks/root-0.qcow2", 10 << 30)],
            arch="amd64",
            board=board,
        )
        folder = home.machine(f"machine-{number}")
        folder.mkdir(mode=0o700)
        write_machine(folder, record)


def exec_true(world: World, n: int) -> Pairs:
    with world.machine("tiny", "--network", "none", "--memory", "128M") as name:
        socket = Path(world.home.machine(name), names.RUN, names.KEEPER_SOCKET)
        return interleave(
            lambda: run_quietly(INSULA, "exec", name, "--", "true"),
            lambda: run_quietly(world.python, "-I", _HAND_EXEC, str(socket), "true"),
            n,
            warm=3,
        )
