"""Warm states on disk: an image just after boot, kept as a machine folder that never runs, with one snapshot."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from insula.errors import InsulaError
from insula.host.files import fsync_folder, remove_tree
from insula.store import names
from insula.store.names import Home
from insula.store.snapshots import SnapshotRecord, read_snapshot

BOOTED = "booted"


def warm_snapshot(folder: Path) -> Path:
    """The folder with memory and devices."""
    return folder / names.SNAPSHOTS / BOOTED


def read_warm(home: Home, key: str) -> SnapshotRecord | None:
    """The state with this key, or None. Raises DamagedRecord when there is one that cannot be read."""
    folder = warm_snapshot(home.warm / key)
    return read_snapshot(folder) if folder.is_dir() else None


def publish_warm(home: Home, staged: Path, key: str) -> None:
    """Give a complete state its name. One that was there already is replaced."""
    remove_warm(home, key)
    fsync_folder(staged)
    with contextlib.suppress(FileExistsError, OSError):
        staged.rename(home.warm / key)
    fsync_folder(home.warm)


def remove_warm(home: Home, key: str) -> None:
    """Delete a state: out of sight at once, then its files. Machines forked from it are not concerned."""
    gone = home.warm / f"{names.GONE_PREFIX}{os.urandom(8).hex()}"
    with contextlib.suppress(FileNotFoundError):
        (home.warm / key).rename(gone)
        remove_tree(gone)


def sweep_warm(home: Home) -> None:
    """Remove what was half deleted."""
    with contextlib.suppress(FileNotFoundError), os.scandir(home.warm) as entries:
        for entry in entries:
            if entry.name.startswith(names.GONE_PREFIX):
                remove_tree(Path(entry.path))


def warm_keys(home: Home) -> list[str]:
    """Keys of all states."""
    with contextlib.suppress(FileNotFoundError), os.scandir(home.warm) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False))
    return []


def warm_states(home: Home) -> Iterator[tuple[str, SnapshotRecord | None]]:
    """Key and record of every state; None for one that cannot be read."""
    for key in warm_keys(home):
        try:
            yield key, read_warm(home, key)
        except (InsulaError, OSError):
            yield key, None
