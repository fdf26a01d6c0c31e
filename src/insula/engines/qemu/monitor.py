"""Typed calls to QEMU's monitor. Each opens the monitor for verbs, which serves one client at a time: the caller holds the
machine's lock. All raise what `Monitor` raises."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from insula.engines.qemu.answers import RunState, ask
from insula.engines.qemu.qmp import PATIENCE, Monitor
from insula.errors import InsulaError

_STOPPED: Final = 10.0


def read_status(monitor: Monitor) -> RunState:
    """Whether the guest's CPUs run."""
    return ask(monitor, RunState, "query-status")


def query_status(socket_path: Path) -> RunState:
    """Whether the guest's CPUs run."""
    with Monitor(socket_path) as monitor:
        return read_status(monitor)


def pause(socket_path: Path) -> None:
    """Stop the CPUs and return when they stand. Does nothing when they do already."""
    with Monitor(socket_path) as monitor:
        if read_status(monitor).running:
            monitor.execute("stop")
            # The reply means "asked"; the event means "stopped".
            if monitor.wait_event(lambda event: event.name == "STOP", _STOPPED) is None:
                raise InsulaError(f"the guest did not stop within {_STOPPED:g} s", code="monitor_timeout")


def resume(socket_path: Path) -> None:
    """Let the CPUs run. Does nothing when they do already."""
    with Monitor(socket_path) as monitor:
        if not read_status(monitor).running:
            monitor.execute("cont")


def power_button(socket_path: Path) -> None:
    """Press the power button; returns at once."""
    execute(socket_path, "system_powerdown")


def throttle(socket_path: Path, groups: Collection[str], limits: Mapping[str, int]) -> None:
    """Hold these throttle groups to ``limits``."""
    with Monitor(socket_path) as monitor:
        for group in groups:
            monitor.execute("qom-set", {"path": f"/objects/{group}", "property": "limits", "value": dict(limits)})


def quit_qemu(socket_path: Path) -> None:
    """End QEMU in order: its disks are flushed, the guest is not asked."""
    execute(socket_path, "quit")


def execute(socket_path: Path, command: str, arguments: dict[str, object] | None = None, patience: float = PATIENCE) -> Any:
    """Any other command; returns what QEMU returned, as JSON values."""
    with Monitor(socket_path, patience) as monitor:
        return monitor.execute(command, arguments)
