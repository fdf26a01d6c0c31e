"""A journal, not memory: what a verb was doing to a machine when it died.

A verb that takes several steps notes each one in the machine's folder before doing it and removes the note at its end.
Whoever takes the machine's lock next finds the note of a dead verb and finishes or undoes its work (see recover.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from insula.errors import DamagedRecord, InsulaError
from insula.store import names
from insula.store.records import read_record, write_record


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last step begun by a verb. ``version`` is the journal's format. ``stands``: the guest is to stand afterwards, too; one
    that stands when its verb has died goes on otherwise."""

    verb: str
    step: str
    version: int = 1
    stands: bool = False


def note(folder: Path, verb: str, step: str, *, stands: bool = False) -> None:
    write_record(folder / names.JOURNAL, Entry(verb=verb, step=step, stands=stands))


def clear(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        (folder / names.JOURNAL).unlink()


@contextlib.contextmanager
def noted(folder: Path, verb: str, step: str, *, stands: bool = False, takes_back: bool = False) -> Iterator[None]:
    """For a verb of one step. When that fails the note stays, so that the next verb looks at what there is; not so if it
    ``takes_back`` what it did."""
    note(folder, verb, step, stands=stands)
    try:
        yield
    except InsulaError:
        if takes_back:
            clear(folder)
        raise
    clear(folder)


def pending(folder: Path) -> Entry | None:
    """What a dead verb left, if anything. A journal that cannot be read counts as one whose verb is unknown."""
    try:
        return read_record(folder / names.JOURNAL, Entry)
    except FileNotFoundError:
        return None
    except DamagedRecord:
        return Entry(verb="unknown", step="unknown")
