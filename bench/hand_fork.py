"""A restore by hand: QEMU with the very words that Insula gives it, and nothing around it: no jail, no keeper, no identity."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import msgspec

from bench.hand import AgentClient
from insula.engines.base import LoadPlan
from insula.engines.qemu.board import JAIL_INITRD, JAIL_KERNEL, JAIL_MEMORY, build_board
from insula.engines.qemu.cmdline import build_argv
from insula.engines.qemu.descriptors import Descriptors, open_for_qemu
from insula.engines.qemu.migrate import load
from insula.engines.qemu.monitor import resume
from insula.operations.start import launch_plan
from insula.store import names
from insula.store.machines import read_machine, write_machine
from insula.store.snapshots import SnapshotRecord


def restore(folder: Path, machine: Path, snapshot: Path, state: SnapshotRecord) -> float:
    """Seconds until a program ran in a machine that goes on from ``snapshot``; ``folder`` is an empty one to work in.

    ``machine`` is the folder whose layers the snapshot names.
    """
    assert state.memory is not None
    assert state.memory.offset is not None
    started = time.perf_counter()
    record = msgspec.structs.replace(read_machine(machine), boot=state.boot, board=state.board, spec=state.spec)
    for place in (names.LAYERS, names.DISKS, names.RUN):
        (folder / place).mkdir()
    disks = []
    for disk, kept in zip(record.disks, state.disks, strict=True):
        for layer in kept.layers:
            (folder / layer).hardlink_to(machine / layer)
        head = f"{names.DISKS}/{disk.name}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(folder / head), str(kept.size)], check=True)
        disks.append(msgspec.structs.replace(disk, layers=kept.layers, head=head))
    for path in (state.boot.kernel, state.boot.initrd):
        if path is not None:
            (folder / path).hardlink_to(machine / path)
    record = msgspec.structs.replace(record, disks=disks)
    write_machine(folder, record)
    plan = launch_plan(folder, record, LoadPlan(snapshot / names.STATE, snapshot / names.MEMORY, state.memory.offset))
    with Descriptors() as descriptors:
        board = build_board(plan)
        open_for_qemu(descriptors, plan, board)
        for index in range(len(plan.nics)):
            descriptors.pair(f"net{index}", f"net{index}")
        words = build_argv(board, descriptors.qemu, "qemu-system-x86_64")
        shown = {JAIL_MEMORY: str(snapshot / names.MEMORY)}
        shown |= {JAIL_KERNEL: f"{folder}/{state.boot.kernel}", JAIL_INITRD: f"{folder}/{state.boot.initrd}"}
        for inside, outside in shown.items():
            words = [word.replace(inside, outside) for word in words]
        with subprocess.Popen(words, pass_fds=list(descriptors.qemu.values()), stdin=subprocess.DEVNULL) as qemu:
            try:
                load(folder / names.RUN / names.QMP_SOCKET, snapshot / names.STATE)
                resume(folder / names.RUN / names.QMP_SOCKET)
                agent = AgentClient(socket.socket(fileno=os.dup(descriptors.keeper["agent"])))
                agent.greet()
                agent.wait("true")
                return time.perf_counter() - started
            finally:
                qemu.kill()
