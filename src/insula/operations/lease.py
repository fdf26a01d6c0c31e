"""A lease: the connection that a machine lives by, for as long as it is somebody's. When it drops, however that comes, the
machine ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from insula.store import names

if TYPE_CHECKING:
    from insula.guest.keeper import Hold
    from insula.guest.link import Link


class Lease:
    """See the module."""

    def __init__(self, link: Link, hold: Hold) -> None:
        self._link = link
        self._hold = hold

    def release(self) -> None:
        """The machine lives on by itself."""
        self._hold.release()
        self._link.close()

    def close(self) -> None:
        """The machine ends."""
        self._link.close()


def take_lease(folder: Path) -> Lease:
    """From the return of this call on, the machine ends when the lease is closed or this process dies.

    Raises MachineEnded.
    """
    from insula.guest.keeper import hold
    from insula.guest.link import open_link

    link = open_link(folder / names.RUN)
    try:
        return Lease(link, hold(link, "quit"))
    except BaseException:
        link.close()
        raise
