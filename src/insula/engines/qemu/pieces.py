"""CPUs and pieces of memory beyond those a machine boots with, as QEMU is told of them. Pure."""

from __future__ import annotations

from typing import Any, Final

from insula.model.shape import Dimm

# What the blocks of plugged memory are called in QEMU, and so in its memory files.
PREFIX: Final = "dimm-"


def cpu_place(cpus: int, number: int) -> dict[str, object]:
    """Where the CPU with this number is, on the board of a machine that boots with ``cpus``."""
    return {"id": f"cpu{number}", "socket-id": number // cpus, "core-id": number % cpus, "thread-id": 0}


def cpu_type(model: str) -> str:
    """QEMU's name for CPUs of a model, which may have properties behind it."""
    return f"{model.partition(',')[0]}-x86_64-cpu"


def block_name(dimm: Dimm) -> str:
    return f"{PREFIX}{dimm.name}"


def dimm_id(dimm: Dimm) -> str:
    return f"dimm{dimm.slot}"


def dimm_place(dimm: Dimm) -> dict[str, Any]:
    """A piece's device; its address is QEMU's choice unless it is known."""
    place: dict[str, Any] = {"id": dimm_id(dimm), "memdev": block_name(dimm), "slot": dimm.slot}
    return {**place, "addr": dimm.address} if dimm.address else place
