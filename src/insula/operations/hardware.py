"""What CPUs and pieces of memory a running machine has, put into its record: its guest may have let go of some by itself, and a
verb that plugs them in may have died."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from insula.model.shape import Shape, kept_shape
from insula.operations.context import Context
from insula.store import names
from insula.store.machines import MachineRecord, write_machine

RESIZE: Final = "limit"  # the verb, as the journal has it


def found_shape(context: Context, folder: Path, shape: Shape) -> Shape:
    """``shape`` with what the running machine has of it. Raises MachineEnded, InsulaError."""
    found = context.engine.hardware(folder / names.RUN)
    return shape.as_found(found.cpus, found.pieces)


def reconcile(context: Context, folder: Path, record: MachineRecord) -> MachineRecord:
    """The record of a running machine, on the disk, with what it has. Raises MachineEnded, InsulaError."""
    return with_shape(folder, record, found_shape(context, folder, record.hardware))


def with_shape(folder: Path, record: MachineRecord, shape: Shape) -> MachineRecord:
    """The record with ``shape``, written down when that is new."""
    kept = kept_shape(record.spec, shape)
    if kept != record.shape:
        record = msgspec.structs.replace(record, shape=kept)
        write_machine(folder, record)
    return record
