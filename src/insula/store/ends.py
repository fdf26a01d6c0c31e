"""Why a machine ended last, as it is kept in its folder (``last-end.json``)."""

from __future__ import annotations

from pathlib import Path

import msgspec

from insula.errors import DamagedRecord
from insula.model.status import End
from insula.store import names
from insula.store.records import read_record, write_record

VERSION = 1


class _EndRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``version`` 0: written before the record had one; it says the same."""

    version: int = 0
    reason: str
    at: float
    detail: str = ""
    last_words: str = ""


def read_end(folder: Path) -> End:
    """Why the machine in ``folder`` ended last. Raises FileNotFoundError, DamagedRecord (also for one of a newer Insula)."""
    record = read_record(folder / names.LAST_END, _EndRecord)
    if record.version > VERSION:
        raise DamagedRecord(f"{folder / names.LAST_END} was written by a newer Insula", hint="use the newer Insula")
    return End(reason=record.reason, at=record.at, detail=record.detail, last_words=record.last_words)


def write_end(folder: Path, end: End) -> None:
    """Keep ``end``. Raises HostLacks (``no_space``)."""
    record = _EndRecord(version=VERSION, reason=end.reason, at=end.at, detail=end.detail, last_words=end.last_words)
    write_record(folder / names.LAST_END, record)
