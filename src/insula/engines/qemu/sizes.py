"""How large the files become that a QEMU writes. Pure."""

from __future__ import annotations

from typing import Final

from insula.engines.base import LaunchPlan
from insula.model.shape import most_memory
from insula.model.units import GIB

_BESIDE: Final = GIB  # what a file of memory has beside the guest's own: screens, firmware, the format


def largest_file(plan: LaunchPlan) -> int:
    """Bytes that no file which ``plan``'s QEMU writes ever reaches: its memory, which it also saves, and its disks.

    A qcow2 file has 1/5000 beside the data (docs/interop/qcow2.rst of QEMU), and clusters that a crash let leak.
    """
    return max([most_memory(plan.memory) + _BESIDE, *(disk.size + disk.size // 8 + _BESIDE for disk in plan.disks)])
