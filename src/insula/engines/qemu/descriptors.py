"""Everything a machine's processes are handed open, made in one place and closed in one place.

A descriptor is all a jailed process has of the outside: files by the access they are opened with, sockets by the end they hold.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Final

from insula.engines.base import DiskBoot, LaunchPlan
from insula.engines.qemu.board import Board
from insula.host.sockets import listen_unix
from insula.store import names

# Bytes to have room for on their way to the other side: bulk then stops less often; with more it leaves the CPUs' caches.
_SENDING: Final = 1 << 18


class Descriptors:
    """Descriptors for QEMU (``qemu``) and the keeper (``keeper``), by name.

    A context manager: on leaving it our copies are closed; the processes that were given them have their own.
    """

    def __init__(self) -> None:
        self.qemu: dict[str, int] = {}
        self.keeper: dict[str, int] = {}

    def __enter__(self) -> Descriptors:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for descriptors in (self.qemu, self.keeper):
            for descriptor in descriptors.values():
                os.close(descriptor)
            descriptors.clear()

    def numbers(self) -> list[int]:
        """All of them, for the process that passes them on."""
        return [number for part in (self.qemu, self.keeper) for number in part.values()]

    def pair(self, qemu: str, keeper: str) -> None:
        """A connection between QEMU and the keeper."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        for end in (ours, theirs):  # more than the kernel grants anybody (net.core.wmem_max): it gives what it gives
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SENDING)
        self.qemu[qemu] = ours.detach()
        self.keeper[keeper] = theirs.detach()


def open_for_keeper(descriptors: Descriptors, plan: LaunchPlan) -> None:
    """The keeper's socket, its records in the run folder, and the machine's logs."""
    folder, run = plan.folder, plan.run_folder
    descriptors.keeper["listen"] = listen_unix(run / names.KEEPER_SOCKET).detach()
    for name, path in (
        ("status", run / names.STATUS),
        ("exit", run / names.EXIT),
        ("events", folder / names.EVENTS),
        ("events-old", folder / names.EVENTS_OLD),
        ("console-log", folder / names.CONSOLE),
        ("console-log-old", folder / names.CONSOLE_OLD),
    ):
        descriptors.keeper[name] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    log = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptors.keeper["qemu-log"] = os.open(folder / names.QEMU_LOG, log, 0o600)


def open_for_qemu(descriptors: Descriptors, plan: LaunchPlan, board: Board) -> None:
    """Its monitors, the agent's and the console's connection, and every file on the board."""
    run = plan.run_folder
    descriptors.qemu["mon-verbs"] = listen_unix(run / names.QMP_SOCKET).detach()
    descriptors.qemu["mon-readers"] = listen_unix(run / names.QMP_READ_SOCKET).detach()
    descriptors.pair("mon-keeper", "qmp")
    descriptors.pair("agent", "agent")
    descriptors.pair("console", "console")
    access = _files(plan)
    for file in board.files:
        path, flags = access[file.key]
        descriptors.qemu[file.key] = os.open(path, flags | os.O_CLOEXEC)


def _files(plan: LaunchPlan) -> dict[str, tuple[Path, int]]:
    """The path and access of each key in ``Board.files``: only heads and firmware variables may be written."""
    files: dict[str, tuple[Path, int]] = {"kvm": (Path("/dev/kvm"), os.O_RDWR)}
    for disk in plan.disks:
        for index, layer in enumerate(disk.layers):
            files[f"{disk.name}-{index}"] = (layer.path, os.O_RDONLY | os.O_NOFOLLOW)
        files[f"{disk.name}-{len(disk.layers)}"] = (disk.head.path, os.O_RDWR | os.O_NOFOLLOW)
    if isinstance(plan.boot, DiskBoot) and plan.boot.variables is not None:
        files["variables"] = (plan.boot.variables, os.O_RDWR | os.O_NOFOLLOW)
    return files
