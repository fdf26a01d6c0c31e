"""Tell a guest who it is."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from insula.errors import GuestError
from insula.model.identity import Identity
from insula.operations.cabling import inner_addresses
from insula.store import names
from insula.store.machines import MachineRecord

if TYPE_CHECKING:
    from insula.guest.agent import GuestIdentity, Nic
    from insula.guest.link import Link
    from insula.operations.context import Context

# A program an image may have; see docs/images.md.
READY_HOOK: Final = "/usr/lib/insula/ready"
# The kind of SSH host key that every fork with a server gets; it costs some milliseconds.
KEY_TYPE: Final = "ed25519"


def identify(context: Context, folder: Path, record: MachineRecord) -> None:
    """Give the guest its host name and machine id through its agent. Doing it twice changes nothing.

    Raises GuestError, AgentAbsent, MachineEnded.
    """
    from insula.guest.agent import set_identity
    from insula.guest.link import open_link

    with open_link(folder / names.RUN) as link:
        set_identity(link, guest_identity(context, folder.name, record))


def guest_identity(
    context: Context,
    name: str,
    record: MachineRecord,
    former: Identity | None = None,
    host_keys: tuple[tuple[str, bytes], ...] = (),
) -> GuestIdentity:
    """Who the machine ``name`` is inside. ``former``: the identity that a fork still has; its cards get their own addresses."""
    from insula.guest.agent import GuestIdentity

    return GuestIdentity(record.identity.machine_id, name, host_keys, _nics(context, record, former))


def wait_hook(link: Link, timeout: float) -> None:
    """Let the guest say itself when it is ready: run ``READY_HOOK`` in it, if there is one, ``timeout`` seconds at most.

    What the hook makes of it is the image's affair: however it ends, and if it takes too long, the machine counts as started.
    Raises MachineEnded.
    """
    deadline = time.monotonic() + timeout
    with contextlib.suppress(GuestError):
        # To ask whether it is there costs an emulated guest a tenth of trying to run it.
        link.call("stat", path=READY_HOOK, timeout=max(0.0, timeout))
        link.open("exec", argv=(READY_HOOK,)).finish(timeout=max(0.0, deadline - time.monotonic()))


def _nics(context: Context, record: MachineRecord, former: Identity | None) -> tuple[Nic, ...]:
    """A directly booted guest has no DHCP client of its own: its cards are set up by us. A fork's are, too, so that its networks
    work at once; a client in it will be offered the same addresses."""
    from insula.guest.agent import Nic

    if former is None and record.boot.kind != "direct":
        return ()
    nics = []
    for nic, mac in zip(record.nics, (former or record.identity).macs, strict=False):
        addresses, gateways, dns = inner_addresses(context.home, nic)
        new_mac = nic.mac if nic.mac != mac else ""
        nics.append(Nic(mac=mac, new_mac=new_mac, addresses=addresses, gateways=gateways, dns=dns))
    return tuple(nics)
