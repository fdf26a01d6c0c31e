"""Tell a guest who it is."""

from __future__ import annotations

from pathlib import Path

from insula.store import names
from insula.store.machines import MachineRecord


def identify(folder: Path, record: MachineRecord) -> None:
    """Give the guest its host name and machine id through its agent. Doing it twice changes nothing.

    Raises GuestError, AgentAbsent, MachineEnded.
    """
    from insula.guest.agent import GuestIdentity, set_identity
    from insula.guest.link import open_link

    with open_link(folder / names.RUN) as link:
        set_identity(link, GuestIdentity(hostname=folder.name, machine_id=record.identity.machine_id))
