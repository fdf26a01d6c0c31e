"""Records: what Insula remembers, as JSON files with a schema version, replaced atomically and read strictly."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from insula.errors import DamagedRecord
from insula.host.files import staged, write_atomic
from insula.model.spec import upgrade_spec

T = TypeVar("T", bound=msgspec.Struct)


def write_record(path: Path, record: msgspec.Struct, mode: int = 0o600) -> None:
    """Replace the record at ``path``; on return it is on the disk. Raises HostLacks (``no_space``)."""
    write_atomic(path, _encode(record), mode)


def staged_record(path: Path, record: msgspec.Struct) -> contextlib.AbstractContextManager[Callable[[], None]]:
    """See `insula.host.files.staged`."""
    return staged(path, _encode(record))


def _encode(record: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"


def decode_record(content: bytes, kind: type[T], upgrade: Callable[[object], object] | None = None) -> T:
    """As `read_record`. Raises msgspec.MsgspecError."""
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as invalid:
        if upgrade is None:
            raise
        try:
            return msgspec.convert(upgrade(msgspec.json.decode(content)), kind)
        except RecursionError:
            raise invalid from None


def upgrade_shape(record: object) -> object:
    """Pure: a record that holds a machine's shape, with that in today's words."""
    return record | {"spec": upgrade_spec(record["spec"])} if isinstance(record, dict) and "spec" in record else record


class _Versioned(msgspec.Struct, frozen=True):
    version: int = 0


def read_version(path: Path) -> int:
    """The schema version of a record that cannot be read otherwise; 0 when there is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Versioned).version
    except (OSError, msgspec.MsgspecError):
        return 0


def read_record(path: Path, kind: type[T], upgrade: Callable[[object], object] | None = None) -> T:
    """The record at ``path``. ``upgrade`` makes of one that was written by an earlier version what this one would have written.

    Raises FileNotFoundError, or DamagedRecord saying what is wrong where.
    """
    content = path.read_bytes()
    try:
        return decode_record(content, kind, upgrade)
    except msgspec.MsgspecError as cause:
        raise DamagedRecord(
            f"{path} is damaged: {cause}", hint="mend the file by hand, or delete what it describes with --force"
        ) from cause
