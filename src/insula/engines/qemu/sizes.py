"""How large things may become: the memory a machine can be plugged up to, and the files its QEMU writes. Pure."""

from __future__ import annotations

from typing import Final

from insula.engines.base import LaunchPlan
from insula.model.units import GIB

_HOTPLUG_MEMORY: Final = (16 * GIB, 64 * GIB)  # room for what is plugged in: at least so much, at most so much
_BESIDE: Final = GIB  # what a file of memory has beside the guest's own: screens, firmware, the format


def most_memory(size: int) -> int:
    """Bytes that a machine that starts with ``size`` of them can be plugged up to."""
    least_room, most_room = _HOTPLUG_MEMORY
    return -(-(size + min(max(3 * size, least_room), most_room)) // GIB) * GIB


def largest_file(plan: LaunchPlan) -> int:
    """Bytes that no file which ``plan``'s QEMU writes ever reaches: its memory, which it also saves, and its disks.

    A qcow2 file has 1/5000 beside the data (docs/interop/qcow2.rst of QEMU), and clusters that a crash let leak.
    """
    return max([most_memory(plan.memory) + _BESIDE, *(disk.size + disk.size // 8 + _BESIDE for disk in plan.disks)])
