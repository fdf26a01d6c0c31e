"""A lease: the connection that an attached machine lives by. When it drops, however that comes, the machine ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from insula.store import names

if TYPE_CHECKING:
    from insula.guest.link import Link


def take_lease(folder: Path) -> Link:
    """From the return of this call on, the machine ends when the connection is closed or this process dies.

    Raises MachineEnded.
    """
    from insula.guest.keeper import hold
    from insula.guest.link import open_link

    link = open_link(folder / names.RUN)
    try:
        hold(link, "quit")
    except BaseException:
        link.close()
        raise
    return link
