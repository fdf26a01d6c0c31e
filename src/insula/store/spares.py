"""Spares on disk: forks that are loaded and stand, waiting for a name.

spares/ORIGIN/wanted.json     how many there shall be of the state with this id, and where that state is
spares/ORIGIN/TOKEN/          a spare: a machine's folder, whose QEMU runs
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from insula.errors import DamagedRecord, InsulaError
from insula.host.files import remove_tree
from insula.store import names
from insula.store.machines import MachineRecord, machine_names, read_machine
from insula.store.names import Home
from insula.store.records import read_record, write_record

WANTED = "wanted.json"


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``machine`` and ``snapshot`` are folders; ``title`` is how people write the state."""

    version: int
    count: int
    title: str
    machine: str
    snapshot: str


def read_wanted(home: Home, origin: str) -> Wanted | None:
    """What is wanted of a state, or None."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, DamagedRecord):
        return read_record(home.spares / origin / WANTED, Wanted)
    return None


def write_wanted(home: Home, origin: str, wanted: Wanted) -> None:
    (home.spares / origin).mkdir(mode=0o700, parents=True, exist_ok=True)
    write_record(home.spares / origin / WANTED, wanted)


def spare_origins(home: Home) -> list[str]:
    """Ids of the states that have, or are to have, spares."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(os.listdir(home.spares))
    return []


def spare_folders(home: Home, origin: str) -> list[Path]:
    """The spares of a state, the oldest name first."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(home.spares / origin) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    return []


def forget_origin(home: Home, origin: str) -> None:
    """Remove what is left of a state that has no spares any more."""
    remove_tree(home.spares / origin)


def is_marked(folder: Path) -> bool:
    """Whether a spare is complete: it has a run folder."""
    return (folder / names.RUN).is_dir()


def all_folders(home: Home) -> Iterator[Path]:
    """The folders of all machines and spares."""
    yield from (home.machine(name) for name in machine_names(home))
    for origin in spare_origins(home):
        yield from spare_folders(home, origin)


def all_records(home: Home) -> Iterator[tuple[Path, MachineRecord]]:
    """Folders and records of all machines and spares that can be read."""
    for folder in all_folders(home):
        with contextlib.suppress(InsulaError, OSError):
            yield folder, read_machine(folder)
