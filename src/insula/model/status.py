"""What is observed: a machine as `list` and `show` present it."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class State(StrEnum):
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    BROKEN = "broken"

    @property
    def has_process(self) -> bool:
        return self in (State.STARTING, State.RUNNING, State.PAUSED)


class End(msgspec.Struct, frozen=True):
    """Why a machine is not running any more.

    ``reason`` is one of guest-shutdown, guest-reset, guest-panic, stopped, killed (also: its keeper left no word, because it
    was killed or the host went down), crashed, failed-to-start, disk-full (it ended while it was paused for want of space).
    ``at`` is in seconds since 1970, ``detail`` a signal or an exit status, ``last_words`` what QEMU said last, cleaned.
    """

    reason: str
    at: float
    detail: str = ""
    last_words: str = ""


class MachineStatus(msgspec.Struct, frozen=True):
    """One machine, seen from outside. The order of the fields is the order in JSON: the most wanted first.

    ``reason``: why it is paused though nobody asked for it, such as ``no-space`` (the disk that holds its folder is full).
    """

    name: str
    kind: str
    state: State
    image: str
    addresses: list[str]
    cpus: int
    memory: int
    disk: int
    created: float
    agent: bool = False
    ephemeral: bool = False
    problem: str | None = None
    reason: str | None = None
    ended: End | None = None


class MachineDetails(msgspec.Struct, frozen=True):
    """All that `show` tells beyond `list`."""

    status: MachineStatus
    id: str
    image_digest: str
    network: str
    firmware: str
    mac: str
    board: str
    cpu_model: str
    accelerator: str
    qemu: str
    folder: str
    disk_used: int
    guest: dict[str, str]
    process: dict[str, int]
