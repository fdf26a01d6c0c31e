"""Machines that have leave to run without what of their jail this host cannot have."""

from __future__ import annotations

from pathlib import Path

import msgspec

from insula.isolation.bare import lacking
from insula.operations.operation import Operation
from insula.store import names
from insula.store.machines import MachineRecord, write_machine


def say_lacking(folder: Path, record: MachineRecord, operation: Operation) -> None:
    """Once at each start: that it runs so, and without what."""
    lacks = lacking(folder / names.RUN) if record.insecure else None
    if lacks is not None:
        say(folder.name, lacks, operation)


def say(name: str, lacks: str, operation: Operation) -> None:
    operation.warn(f"{name} runs without its whole jail, as --insecure lets it; it lacks {lacks}")


def with_leave(folder: Path, record: MachineRecord, insecure: bool | None) -> MachineRecord:
    """The machine's record with leave given or taken back (None: as it was); noted, so that it holds for later starts."""
    if insecure is None or insecure == record.insecure:
        return record
    record = msgspec.structs.replace(record, insecure=insecure)
    write_machine(folder, record)
    return record
