"""What is asked for: frozen, validated, unknown fields refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from insula.errors import UsageError
from insula.model.units import GIB, KIB, MIB, format_size

Firmware = Literal["bios", "uefi"]
Display = Literal["none", "vga"]

DEFAULT_NETWORK = "nat"
NO_NETWORK = "none"
MOST_NETWORKS = 4
DEFAULT_CPUS = 1
DEFAULT_MEMORY = 512 * MIB
DEFAULT_DISK = 10 * GIB

MOST_CPUS = 64
LEAST_MEMORY = 96 * MIB
MOST_MEMORY = 512 * GIB  # with the room kept for plugging in, within the 40 bits of address that QEMU gives by default
LEAST_DISK = 64 * MIB
MOST_DISK = 64 * 1024 * GIB


class MachineSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A machine's shape. Sizes are in bytes; ``disk`` is the virtual size of the root disk.

    ``networks``: the names of those it has a card on, in the cards' order.
    """

    cpus: int = DEFAULT_CPUS
    memory: int = DEFAULT_MEMORY
    disk: int = DEFAULT_DISK
    networks: tuple[str, ...] = (DEFAULT_NETWORK,)
    firmware: Firmware = "bios"
    display: Display = "none"
    tpm: bool = False


def check_spec(spec: MachineSpec) -> MachineSpec:
    """``spec`` itself when some host could run it. Raises UsageError (``bad_size``) naming the field and the bounds."""
    if not 1 <= spec.cpus <= MOST_CPUS:
        raise UsageError(f"{spec.cpus} CPUs is not possible", code="bad_size", hint=f"ask for 1 to {MOST_CPUS} CPUs")
    if not LEAST_MEMORY <= spec.memory <= MOST_MEMORY:
        raise UsageError(
            f"{format_size(spec.memory)} of memory is {'too little to boot' if spec.memory < LEAST_MEMORY else 'not possible'}",
            code="bad_size",
            hint=_meant(spec.memory, LEAST_MEMORY, MOST_MEMORY, "MG"),
        )
    if spec.memory % MIB:
        raise UsageError("memory must be a whole number of MiB", code="bad_size", hint="write it like 512M")
    if not LEAST_DISK <= spec.disk <= MOST_DISK:
        raise UsageError(
            f"a disk of {format_size(spec.disk)} is not possible",
            code="bad_size",
            hint=_meant(spec.disk, LEAST_DISK, MOST_DISK, "GM"),
        )
    if len(spec.networks) > MOST_NETWORKS:
        raise UsageError(
            f"{len(spec.networks)} network cards are not possible",
            code="too_many_devices",
            hint=f"ask for {MOST_NETWORKS} at most",
        )
    return spec


def networks_asked(words: Sequence[str]) -> tuple[str, ...]:
    """What ``--network`` was given: ``none`` alone means no card. Raises UsageError (``bad_network``)."""
    if NO_NETWORK in words and len(words) > 1:
        raise UsageError("'none' means no network card, so it stands alone", code="bad_network", hint="leave it out")
    return () if tuple(words) == (NO_NETWORK,) else tuple(words)


def upgrade_spec(spec: object) -> object:
    """Pure: a spec as written by a version that knew one network, or none, in today's words; else ``spec`` itself."""
    if not isinstance(spec, dict) or "network" not in spec:
        return spec
    network = spec["network"]
    return {key: value for key, value in spec.items() if key != "network"} | {
        "networks": [] if network == NO_NETWORK else [network]
    }


def _meant(size: int, least: int, most: int, units: str) -> str:
    """What may be asked for; a small number was probably meant in the first of ``units`` in which it is possible."""
    bounds = f"ask for {format_size(least)} to {format_size(most)}"
    possible = [unit for unit in units if size < KIB * KIB and least <= size * {"M": MIB, "G": GIB}[unit] <= most]
    return f"did you mean {size}{possible[0]}? A number without a unit is bytes; {bounds}" if possible else bounds
