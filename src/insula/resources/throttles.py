"""A machine's disk limits in the words of QEMU's throttle groups: pure. They hold for what the guest asks of its disk, whatever
the host does with it, so for buffered files and without root, too."""

from __future__ import annotations

from insula.model.limits import Limits


def throttle_limits(limits: Limits) -> dict[str, int]:
    """The property ``limits`` of a throttle group; all of it is said, so that what was there before goes. QEMU's documentation,
    throttle.txt: ``x-max`` is the rate allowed for ``x-max-length`` seconds; 0 is none."""
    found: dict[str, int] = {}
    for name, rate, burst in (
        ("bps-total", limits.disk_rate, limits.disk_rate_burst),
        ("iops-total", limits.disk_iops, limits.disk_iops_burst),
    ):
        found |= {name: rate, f"{name}-max": burst, f"{name}-max-length": limits.burst_time if burst else 1}
    return found
