"""The programs that serve networks (dnsmasq, who passes published ports on), as rooms of a holder's have them: what they read is
what guests send.

Each sees the system's programs and what it is shown, in namespaces of its own, with no rights but those its work takes, bounded
(native/keeper/room.c, rights.c), and may ask the kernel for what is on a list (filters/).
"""

from __future__ import annotations

import os

from insula.host.holder import Holder, Program
from insula.isolation.filters import open_filter


def start_server(holder: Holder, name: str, program: Program, *descriptors: int) -> None:
    """As `Holder.start`, held to the list of system calls for what serves networks, where this architecture has one."""
    calls = open_filter("server")
    try:
        holder.start(name, program, *descriptors, calls=calls)
    finally:
        if calls is not None:
            os.close(calls)
