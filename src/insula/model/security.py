"""What stands between a running machine and its host."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class LayerState(StrEnum):
    """Whether a layer of a jail holds."""

    HOLDS = "holds"
    ABSENT = "absent"  # this host, this user or this version has none to give
    BROKEN = "broken"  # it was to be there and is not


class Layer(msgspec.Struct, frozen=True):
    """One layer of a jail. ``detail`` says what was seen of it, or why there is none."""

    name: str
    state: LayerState
    detail: str


class Security(msgspec.Struct, frozen=True):
    """The layers around a machine's process, from outside in, and what QEMU itself promises (``qemu``)."""

    name: str
    accelerator: str
    qemu: str
    layers: list[Layer]
