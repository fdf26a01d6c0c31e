"""Insula: many isolated computers in one.

    import insula

    with insula.run("debian") as machine:
        print(machine.exec("uname", "-a").stdout)

`insula.aio` has the same for asyncio. Errors are subclasses of `insula.InsulaError` with ``code``, ``message``, ``hint``.
"""

from __future__ import annotations

from insula.version import __version__

TYPE_CHECKING = False  # as in typing, which takes long to load
if TYPE_CHECKING:
    from typing import Any

    from insula.client.sdk import ExecResult, Insula, Machine, Snapshot, connect, run
    from insula.errors import (
        AgentAbsent,
        AlreadyExists,
        Busy,
        ChildFailed,
        DamagedRecord,
        GuestError,
        HostLacks,
        InsulaError,
        Interrupted,
        MachineEnded,
        NotFound,
        UsageError,
        WrongState,
    )

__all__ = [
    "connect", "run", "Insula", "Machine", "Snapshot", "ExecResult",
    "InsulaError", "UsageError", "NotFound", "AlreadyExists", "WrongState", "Busy", "DamagedRecord", "HostLacks", "ChildFailed",
    "GuestError", "AgentAbsent", "MachineEnded", "Interrupted",
    "__version__",
]  # fmt: skip

_SDK = frozenset({"connect", "run", "Insula", "Machine", "Snapshot", "ExecResult"})


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for: the command line imports this package too, and must start at once."""
    if name not in __all__ and name != "aio":
        raise AttributeError(f"module 'insula' has no attribute {name!r}")
    import importlib

    if name == "aio":
        return importlib.import_module("insula.aio")
    return getattr(importlib.import_module("insula.client.sdk" if name in _SDK else "insula.errors"), name)


def __dir__() -> list[str]:
    """What `dir(insula)` and a Python prompt show: also what is not loaded yet."""
    return sorted({*globals(), *__all__, "aio"})
