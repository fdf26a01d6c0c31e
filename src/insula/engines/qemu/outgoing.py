"""What QEMU is told and asked while it writes a machine's state, or loads one, whichever way that is done."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Final

from insula.engines.qemu.answers import is_migrating, why_not_migrated
from insula.engines.qemu.monitor import read_status
from insula.engines.qemu.qmp import Event, Monitor
from insula.errors import HostLacks, InsulaError
from insula.model.text import clean

UNBOUNDED: Final = 1 << 40  # bytes per second
PATIENCE: Final = 600.0  # seconds for writing the memory of a large guest to a slow disk
DEVICES: Final = 60.0
_TIDY: Final = 0.001  # between two looks whether QEMU has tidied up, of which there is no event


def stop(monitor: Monitor) -> float:
    """Stop the guest; since when it stands, by QEMU's clock. What it wrote to its disks is in their files then."""
    monitor.execute("stop")
    event = monitor.wait_event(lambda event: event.name == "STOP", DEVICES)
    return event.at if event is not None else 0.0


def set_capabilities(monitor: Monitor, names: tuple[str, ...], state: bool) -> None:
    capabilities = [{"capability": name, "state": state} for name in names]
    monitor.execute("migrate-set-capabilities", {"capabilities": capabilities})


@contextlib.contextmanager
def capable(monitor: Monitor, *names: str) -> Iterator[None]:
    """Within the context QEMU has these capabilities, and tells of what becomes of a migration, which is over on the way out."""
    names = (*names, "events")
    set_capabilities(monitor, names, True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(InsulaError):
            monitor.execute("migrate_cancel")
            wait_tidy(monitor)
            set_capabilities(monitor, names, False)
        raise
    wait_tidy(monitor)
    with contextlib.suppress(InsulaError):
        set_capabilities(monitor, names, False)


def wait_tidy(monitor: Monitor) -> None:
    """Wait until QEMU has put away what it migrated with, which it does after it said `completed` or `failed`, and as its
    capabilities then are: with multifd turned off before, the channels stay, and the next save aborts QEMU. Giving up its yank
    instance is the last it does (migration_cleanup in QEMU's migration.c).
    """
    deadline = time.monotonic() + DEVICES
    while is_migrating(monitor):
        if time.monotonic() > deadline:
            raise InsulaError("QEMU does not end its migration", code="save_failed")
        time.sleep(_TIDY)


def is_over(event: Event) -> bool:
    return event.name == "MIGRATION" and event.data.get("status") in ("completed", "failed", "cancelled")


def why(monitor: Monitor) -> str:
    return clean(why_not_migrated(monitor))


def failed(reason: str) -> InsulaError:
    if "No space left" in reason or "space" in reason.lower() or "quota" in reason.lower():
        return HostLacks("no space left for the machine's memory", code="no_space", hint="free some space")
    return InsulaError(f"QEMU could not write the machine's memory: {reason}", code="save_failed")


def let_run(monitor: Monitor, wanted: bool) -> float | None:
    """Let the guest run if ``wanted``; since when it does, by QEMU's clock."""
    return None if not wanted or read_status(monitor).running else go_on(monitor)


def go_on(monitor: Monitor) -> float | None:
    """Let a guest that stands run; since when it does, by QEMU's clock."""
    monitor.execute("cont")
    event = monitor.wait_event(lambda event: event.name == "RESUME", DEVICES)
    return event.at if event is not None else None
