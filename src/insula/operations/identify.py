"""Tell a guest who it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from insula.store import names
from insula.store.machines import MachineRecord

if TYPE_CHECKING:
    from insula.guest.agent import Nic


def identify(folder: Path, record: MachineRecord) -> None:
    """Give the guest its host name and machine id through its agent. Doing it twice changes nothing.

    Raises GuestError, AgentAbsent, MachineEnded.
    """
    from insula.guest.agent import GuestIdentity, set_identity
    from insula.guest.link import open_link

    identity = GuestIdentity(hostname=folder.name, machine_id=record.identity.machine_id, nics=_nics(record))
    with open_link(folder / names.RUN) as link:
        set_identity(link, identity)


def _nics(record: MachineRecord) -> tuple[Nic, ...]:
    """A directly booted guest has no DHCP client of its own: its card is set up by us."""
    from insula.guest.agent import Nic
    from insula.networks.passt import ADDRESS, GATEWAY, PREFIX, RESOLVER

    if record.boot.kind != "direct" or record.spec.network != "nat":
        return ()
    return (Nic(mac=record.identity.mac, addresses=(f"{ADDRESS}/{PREFIX}",), gateways=(GATEWAY,), dns=(RESOLVER,)),)
