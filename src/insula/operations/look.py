"""Look at machines: no lock is taken, nothing is changed, nobody is waited for."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from insula.errors import InsulaError
from insula.host.files import disk_usage
from insula.model.limits import Hold
from insula.model.names import LONGEST_SHOWN
from insula.model.network import Firewall, Nic
from insula.model.requests import ListMachines, ShowMachine
from insula.model.status import MachineDetails, MachineStatus, State, TrafficStatus
from insula.model.units import format_size
from insula.operations import journal
from insula.operations.context import Context
from insula.operations.observe import observe
from insula.operations.operation import Operation
from insula.operations.squeeze import taken_from
from insula.store import names
from insula.store.events import read_events
from insula.store.machines import MachineRecord, machine_folder, machine_names
from insula.store.names import Home

# Not its host name: the agent tells these when its life begins, before it was told who it is.
_HELLO_FIELDS = ("os", "kernel", "arch", "build")
_MADE_FROM = ("forked", "cloned")


def list_machines(context: Context, request: ListMachines, operation: Operation) -> list[MachineStatus]:
    """All machines, by name; a broken one is among them and says what is wrong with it."""
    del request, operation
    found = []
    for name in machine_names(context.home):
        with contextlib.suppress(FileNotFoundError):  # deleted while we looked
            found.append(observe(context.home.machine(name)))
    return with_losses(context.home, found)


def show_machine(context: Context, request: ShowMachine, operation: Operation) -> MachineDetails:
    """All that is known of one machine."""
    del operation
    folder = machine_folder(context.home, request.name)
    status, record = observe(folder)
    if record is None:
        return _broken(folder, status)
    status = with_losses(context.home, [(status, record)])[0]
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
        limits=record.limits,
        insecure=record.insecure,
        returns=_returns(folder, record) if status.state.has_process else "",
        holds=_holds(context, folder, record) if status.state.has_process else [],
        process=_processes(folder, record.id) if status.state.has_process else {},
        cards=_cards(context, request.name) if record.nics and status.state.has_process else [],
    )


def _cards(context: Context, name: str) -> list[TrafficStatus]:
    """What passed a machine's cards; nothing where nobody can tell just now."""
    from insula.operations.traffic import passed

    with contextlib.suppress(InsulaError):
        return passed(context, [context.home.machine(name)])
    return []


def with_losses(home: Home, found: Sequence[tuple[MachineStatus, MachineRecord | None]]) -> list[MachineStatus]:
    """The states of machines, of those with a card that hangs on nothing with word of it."""
    cards = _hanging(found)
    lost = _lost(home, cards)
    # A verb may have been at work between our two looks; one that still is knows what becomes of the card.
    suspects = [name for name, nics in cards.items() if any(nic.key in lost for nic in nics)]
    again = [observe(home.machine(name)) for name in suspects if journal.pending(home.machine(name)) is None]
    cards = _hanging(again)
    lost = _lost(home, cards)
    words = {name: told[0] for name, nics in cards.items() if (told := [lost[nic.key] for nic in nics if nic.key in lost])}
    return [
        msgspec.structs.replace(status, problem=status.problem or words[status.name]) if status.name in words else status
        for status, _ in found
    ]


def _hanging(found: Sequence[tuple[MachineStatus, MachineRecord | None]]) -> dict[str, list[Nic]]:
    """By machine, the cards that hang now, if all is well."""
    return {status.name: record.nics for status, record in found if record and status.state in (State.RUNNING, State.PAUSED)}


def _lost(home: Home, cards: Mapping[str, list[Nic]]) -> dict[str, str]:
    """By a card's key, what became of it. No cost where no machine with a card runs."""
    nics = [nic for each in cards.values() for nic in each]
    if not nics:
        return {}
    from insula.networks.lost import losses

    return losses(home, nics)


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


def _returns(folder: Path, record: MachineRecord) -> str:
    """How memory that the guest frees comes back to the host."""
    if (folder / names.RUN / names.MEMORY).exists():
        return "only when it ends: it shares its memory with other machines"  # a hole in the image would be one in theirs
    if record.board is None or not record.board.balloon:
        return "only when it ends: its guest has no means to hand it over"  # no balloon, so no free-page reporting either
    taken = taken_from(folder)
    lent = f"; {format_size(taken)} of it are lent to other machines" if taken else ""
    return f"at once; to take more from it: insula limit --memory{lent}"


def _holds(context: Context, folder: Path, record: MachineRecord) -> list[Hold]:
    from insula.operations.holding import holds_now

    return holds_now(context, folder, record)


def record_of(context: Context, name: str) -> tuple[Path, MachineRecord]:
    """Folder and record of a machine that is not broken. Raises NotFound or DamagedRecord."""
    from insula.store.machines import read_machine

    folder = machine_folder(context.home, name)
    return folder, read_machine(folder)
