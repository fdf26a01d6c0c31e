"""What many QEMUs count, asked of all of them at once.

Each is asked over the monitor for readers, which serves one at a time: the connection is made, used and closed within
milliseconds, so nobody is kept from it for longer, and whom somebody else is asking just now is done without. All
questions are sent before the first answer is waited for: the QEMUs answer side by side, and one that never does costs the
patience once, not once a machine.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from insula.engines.qemu.answers import DiskRow, shaped
from insula.engines.qemu.qmp import Monitor
from insula.errors import InsulaError
from insula.resources.metrics import DiskCounts

PATIENCE: Final = 0.5  # seconds for all together; a QEMU whose host is very busy answers in tenths


def disk_counts(sockets: Mapping[str, Path], patience: float = PATIENCE) -> dict[str, DiskCounts]:
    """What the disks of machines count, by the same keys; those that do not answer in time, or nonsense, are left out."""
    with contextlib.ExitStack() as stack:
        asked: dict[int, tuple[str, Monitor]] = {}
        for key, path in sockets.items():
            with contextlib.suppress(InsulaError, OSError):
                monitor = Monitor(path, patience, wait=False)
                stack.callback(monitor.close)
                monitor.send_ahead("query-blockstats")
                asked[monitor.fileno()] = key, monitor
        return _gather(asked, time.monotonic() + patience)


def _gather(asked: dict[int, tuple[str, Monitor]], deadline: float) -> dict[str, DiskCounts]:
    """Whoever answers first is heard first, and let go."""
    found = {}
    poller = select.poll()
    for descriptor in asked:
        poller.register(descriptor, select.POLLIN)
    while asked and (left := deadline - time.monotonic()) > 0:
        for descriptor, _ in poller.poll(left * 1000):
            key, monitor = asked[descriptor]
            try:
                if (untrusted := monitor.take_ready()) is None:
                    continue
                found[key] = summed(shaped(untrusted[0], list[DiskRow]))
            except InsulaError:
                pass  # it has ended, refuses, or talks nonsense: that it is left out says so
            poller.unregister(descriptor)
            del asked[descriptor]
            monitor.close()
    return found


def summed(rows: list[DiskRow]) -> DiskCounts:
    """Pure: all disks that the guest sees."""
    disks = [row.stats for row in rows if row.device]
    return DiskCounts(
        reads=sum(disk.rd_operations for disk in disks),
        writes=sum(disk.wr_operations for disk in disks),
        read_bytes=sum(disk.rd_bytes for disk in disks),
        write_bytes=sum(disk.wr_bytes for disk in disks),
        read_ns=sum(disk.rd_total_time_ns for disk in disks),
        write_ns=sum(disk.wr_total_time_ns for disk in disks),
        flushes=sum(disk.flush_operations for disk in disks),
        flush_ns=sum(disk.flush_total_time_ns for disk in disks),
    )
