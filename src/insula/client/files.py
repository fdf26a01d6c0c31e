"""Files of this computer on one side of a copy, a guest on the other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from insula.client.local import LocalClient
from insula.model.requests import CopyIn, CopyOut


def put(client: LocalClient, name: str, sources: Sequence[str | Path], destination: str) -> list[str]:
    """Copy ``sources`` into the machine ``name``; returns warnings. Raises NotFound, GuestError, HostLacks."""
    from insula.guest.pack import Packer

    packer = Packer(sources)
    names = tuple(os.fsdecode(root) for root in packer.names)
    client.do(CopyIn(name=name, destination=destination, names=names), packer)
    return packer.warnings


def get(client: LocalClient, name: str, sources: Sequence[str], destination: str | Path) -> list[str]:
    """Copy ``sources`` of the machine ``name`` to ``destination``; returns warnings. Raises as `put`."""
    from insula.guest.copying import guest_roots
    from insula.guest.unpack import unpack

    roots = guest_roots(sources)
    entries = client.do(CopyOut(name=name, sources=tuple(sources)))
    try:
        return unpack(entries, destination, roots).warnings
    finally:
        entries.close()
