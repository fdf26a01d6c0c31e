"""What two machines must never share, in one place: whoever forks or clones makes all of it new."""

from __future__ import annotations

import os
import uuid

import msgspec


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The host's side of a machine's identity.

    ``uuid`` is the machine's own (SMBIOS), ``generation`` the VM Generation ID that tells a kernel it was forked,
    ``machine_id`` systemd's (32 hex digits), ``mac`` the first network card's address, ``more_macs`` those of the others.
    """

    uuid: str
    generation: str
    machine_id: str
    mac: str
    more_macs: tuple[str, ...] = ()

    @property
    def macs(self) -> tuple[str, ...]:
        """Of all network cards; the first is there even when the machine has none."""
        return (self.mac, *self.more_macs)


class Renewal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What became of a fork's former identity: parts that are ``done``, and those ``left`` as they were, with the reason.

    The parts are ``generation`` (the kernel was told of the fork by VMGENID), ``entropy``, ``connections``, ``clock``,
    ``timers``, ``machine-id``, ``hostname``, ``host-keys``, ``network`` (MAC and what follows from it), ``lease`` (where the
    network's own server gives addresses: another was asked for) and ``hooks``. One that is in neither has no meaning here.
    """

    done: list[str] = []
    left: dict[str, str] = {}


def new_identity() -> Identity:
    own = uuid.uuid4()
    return Identity(uuid=str(own), generation=str(uuid.uuid4()), machine_id=own.hex, mac=new_mac())


def new_mac() -> str:
    """An address of QEMU's own prefix 52:54:00, of which 24 bits are free to choose."""
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in os.urandom(3))
