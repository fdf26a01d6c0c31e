"""What is still due to a guest that was loaded: once it goes on, it is to be told the time, given entropy, and told who it is. A
note in the machine's run folder, which lives as long as that guest."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from insula.errors import DamagedRecord
from insula.model.identity import Identity
from insula.store import names
from insula.store.records import read_record, write_record


class Due(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``former``: the identity that the guest in memory still has, when it is not the machine's own. ``stands``: it was loaded to
    stand until `resume`. ``moved``: its cards have other addresses than it believes."""

    former: Identity | None = None
    version: int = 1
    stands: bool = True
    moved: bool = False


def note_due(run: Path, due: Due) -> None:
    """Raises HostLacks (``no_space``)."""
    write_record(run / names.DUE, due)


def read_due(run: Path) -> Due | None:
    """What is due, if anything. A note that cannot be read means that something is."""
    try:
        return read_record(run / names.DUE, Due)
    except FileNotFoundError:
        return None
    except DamagedRecord:
        return Due()


def clear_due(run: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        (run / names.DUE).unlink()
