"""Look at machines: no lock is taken, nothing is changed, nobody is waited for."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from insula.errors import InsulaError
from insula.host.files import disk_usage
from insula.model.names import LONGEST_SHOWN
from insula.model.network import Firewall
from insula.model.requests import ListMachines, ShowMachine
from insula.model.status import MachineDetails, MachineStatus
from insula.operations.context import Context
from insula.operations.observe import observe
from insula.operations.operation import Operation
from insula.store import names
from insula.store.events import read_events
from insula.store.machines import MachineRecord, machine_folder, machine_names

# Not its host name: the agent tells these when its life begins, before it was told who it is.
_HELLO_FIELDS = ("os", "kernel", "arch", "build")
_MADE_FROM = ("forked", "cloned")


def list_machines(context: Context, request: ListMachines, operation: Operation) -> list[MachineStatus]:
    """All machines, by name; a broken one is among them and says what is wrong with it."""
    del request, operation
    found = []
    for name in machine_names(context.home):
        with contextlib.suppress(FileNotFoundError):  # deleted while we looked
            found.append(observe(context.home.machine(name))[0])
    return found


def show_machine(context: Context, request: ShowMachine, operation: Operation) -> MachineDetails:
    """All that is known of one machine."""
    del operation
    folder = machine_folder(context.home, request.name)
    status, record = observe(folder)
    if record is None:
        return _broken(folder, status)
    board = record.board
    return MachineDetails(
        **msgspec.structs.asdict(status),
        id=record.id,
        image_digest=record.image.digest,
        networks=list(record.spec.networks),
        firmware=record.spec.firmware if record.boot.kind == "disk" else "direct",
        nics=record.nics,
        firewall=record.firewall,
        published=record.published,
        display=record.spec.display,
        tpm=record.spec.tpm,
        board=board.machine if board else "",
        cpu_model=board.cpu if board else "",
        accelerator=board.accelerator if board else "",
        qemu=f"QEMU {board.qemu}" if board else "",
        folder=str(folder),
        disk_used=_used(folder),
        origin=_origin(folder),
        renewed=record.renewed,
        guest=_guest(folder) if status.agent else {},
        process=_processes(folder, record.id) if status.state.has_process else {},
    )


def _broken(folder: Path, status: MachineStatus) -> MachineDetails:
    return MachineDetails(
        **msgspec.structs.asdict(status), id="", image_digest="", networks=[], firmware="", nics=[], firewall=Firewall(),
        published=[], board="", cpu_model="", accelerator="", qemu="", folder=str(folder), disk_used=_used(folder), guest={},
        process={},
    )  # fmt: skip


def _used(folder: Path) -> int:
    """Bytes on disk that belong to this machine alone: its heads, not the layers it shares."""
    return disk_usage(folder / names.DISKS)


def _origin(folder: Path) -> str:
    """What it was forked or cloned from, as it was called then, while its events still tell."""
    from insula.model.text import clean

    for event in read_events(folder):
        if event.get("event") in _MADE_FROM and isinstance(untrusted := event.get("data"), dict):
            return clean(str(untrusted.get("origin", "")), longest=LONGEST_SHOWN)
    return ""


def _guest(folder: Path) -> dict[str, str]:
    from insula.guest.keeper import status
    from insula.guest.link import open_link
    from insula.model.text import clean

    with contextlib.suppress(InsulaError), open_link(folder / names.RUN) as link:
        untrusted = status(link, timeout=1.0).agent
        if untrusted is not None:
            return {field: clean(untrusted.text(field)) for field in _HELLO_FIELDS if untrusted.text(field)}
    return {}


def _processes(folder: Path, machine_id: str) -> dict[str, int]:
    """Pids as this host knows them; those in the keeper's own records are of the jail."""
    from insula.isolation.inhabitants import inhabitants
    from insula.model.text import clean

    return {clean(untrusted_name): pid for pid, untrusted_name in inhabitants(folder, machine_id).items()}


def record_of(context: Context, name: str) -> tuple[Path, MachineRecord]:
    """Folder and record of a machine that is not broken. Raises NotFound or DamagedRecord."""
    from insula.store.machines import read_machine

    folder = machine_folder(context.home, name)
    return folder, read_machine(folder)
