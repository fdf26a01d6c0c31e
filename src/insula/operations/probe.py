"""Trying to get out of a machine's jail: the probe (native/probe) runs where a machine's QEMU would, on this very host.

It is told of things that must not be reached: another machine's files and sockets, services and a process of this host.
"""

from __future__ import annotations

import os
import secrets
import socket
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec

from insula.disks.overlays import create_overlay
from insula.engines.base import DiskBoot, DiskPlan, LaunchPlan, LayerFile
from insula.errors import HostLacks
from insula.host.native import native_path
from insula.host.sockets import listen_unix
from insula.model.doctor import Attempt
from insula.model.limits import Limits
from insula.model.requests import ProbeJail
from insula.model.text import clean
from insula.model.units import MIB
from insula.operations.apart import settings_for
from insula.operations.context import Context
from insula.operations.operation import Operation
from insula.resources.groups import Place, new_place
from insula.resources.shares import fence
from insula.store import names
from insula.store.machines import new_machine_folder
from insula.store.names import Home

_ARCH: Final = "amd64"
_DISK: Final = 16 * MIB
_MEMORY: Final = 128 * MIB
_ID: Final = "probe"
_END: Final = "done"  # the probe's last line


def probe(context: Context, _request: ProbeJail, operation: Operation) -> list[Attempt]:
    """What was tried, in order. Raises HostLacks (``probe_failed``: it did not come to its end), or as `Engine.try_jail`."""
    program = native_path("insula-probe")
    operation.tell("try to get out of a machine's jail")
    with new_machine_folder(context.home, "doctor") as tried, _targets(context.home) as targets, _placed(context) as place:
        plan = _plan(context, tried, place)
        (tried / names.RECORD).write_bytes(b"{}")
        targets |= {
            "record": str(tried / names.RECORD),
            "folder": str(tried),
            "layer": str(plan.disks[0].layers[0].path),
            "much": str(fence(_MEMORY) + 256 * MIB),
        }
        words = tuple(f"{name}={value}" for name, value in targets.items())
        untrusted = context.engine.try_jail(plan, program, words)
    return _read(untrusted)


def _placed(context: Context) -> AbstractContextManager[Place]:
    """In a control group as a machine's."""
    return new_place(context.home, _ID, lambda group: settings_for(context.home, _ID, group, Limits(), _MEMORY))


def _plan(context: Context, folder: Path, place: Place) -> LaunchPlan:
    """A machine with one disk of one layer, which is never to run."""
    layer, head = folder / names.LAYERS / "0.qcow2", folder / names.DISKS / "0.qcow2"
    for path in (layer, head):
        path.parent.mkdir(exist_ok=True)
        create_overlay(path, _DISK)
    layer.chmod(names.LAYER_MODE)
    return LaunchPlan(
        name="probe",
        folder=folder,
        uuid=str(uuid.uuid4()),
        generation=str(uuid.uuid4()),
        cpus=1,
        memory=_MEMORY,
        board=context.engine.choose_board(_ARCH),
        boot=DiskBoot(),
        disks=(DiskPlan("disk0", LayerFile(head), (LayerFile(layer),), size=_DISK),),
        group=place.leaf,
        entrances=place.entrances,
    )


@contextmanager
def _targets(home: Home) -> Iterator[dict[str, str]]:
    """Things that must not be reached, and how the probe is told of them."""
    with ExitStack() as held:
        other = held.enter_context(new_machine_folder(home, "doctor"))
        for name in ("disk", "memory"):
            (other / name).write_bytes(b"another machine's")
        for name in ("qmp", "keeper"):
            held.enter_context(listen_unix(other / name))
        tcp = held.enter_context(socket.create_server(("127.0.0.1", 0)))
        abstract = held.enter_context(socket.socket(socket.AF_UNIX))
        name = f"insula-probe-{secrets.token_hex(8)}"
        abstract.bind(f"\0{name}")
        abstract.listen()
        yield {
            **{what: str(other / what) for what in ("disk", "memory", "qmp", "keeper")},
            "tcp": str(tcp.getsockname()[1]),
            "abstract": name,
            "pid": str(os.getpid()),
        }


def _read(untrusted: bytes) -> list[Attempt]:
    """Parse the probe's lines. Raises HostLacks when its last one is not there."""
    lines = [line.split("\t") for line in untrusted.decode(errors="replace").splitlines()]
    attempts = []
    for line in lines:
        if len(line) == 3:
            try:
                attempts.append(msgspec.convert({"name": clean(line[0]), "result": line[1], "detail": clean(line[2])}, Attempt))
            except msgspec.ValidationError:
                continue
    if not attempts or attempts[-1].name != _END:
        said = clean(untrusted[-300:]) or "it said nothing"
        raise HostLacks(f"the probe did not come to its end: {said}", code="probe_failed", hint="run: insula doctor")
    return attempts[:-1]
