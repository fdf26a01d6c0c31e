"""Which CPU this host has, for guests that see it as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from insula.host.digest import digest_of

_TELLING: Final = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU implementer", "CPU part")


def host_cpu(cpuinfo: str | None = None) -> str:
    """Its name and a digest of all it can do: equal on two hosts whose CPUs a guest cannot tell apart (proc(5), cpuinfo)."""
    text = Path("/proc/cpuinfo").read_text() if cpuinfo is None else cpuinfo
    lines = [line for line in text.split("\n\n", 1)[0].splitlines() if line.startswith(_TELLING)]
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unnamed CPU")
    return f"{name[:100]} ({digest_of(chr(10).join(lines).encode())[:12]})"
