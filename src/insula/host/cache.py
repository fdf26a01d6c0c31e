"""The user's cache of what can be made again: where it is, and how what nobody uses any more leaves it.

Everything in it lies in folders named by what they were made from, so that a change makes a new one. The time of a folder says
when it was last used (to the day). A new one being made is the occasion to remove those that were not used for a month.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Final

from insula.host.files import remove_tree

_DAY: Final = 86400.0
KEPT: Final = 30 * _DAY  # seconds
_GONE: Final = ".gone-"


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/insula``, or ``~/.cache/insula``; it need not be there."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "insula"


def mark_used(folder: Path) -> None:
    """Note that ``folder`` is used, unless that was noted today. One that is not there, or not ours, is left as it is."""
    with contextlib.suppress(OSError):
        if time.time() - folder.stat().st_mtime > _DAY:
            os.utime(folder)


def prune(folder: Path, pattern: str, *, current: Path) -> None:
    """Remove the folders of ``folder`` that match ``pattern``, were not used for a month, and are not in use now.

    ``current`` stays whatever its age. One that cannot be removed stays for another time.
    """
    old = [path for path in folder.glob(pattern) if path != current and _is_old(path)]
    roots = _roots_of_processes() if old else set()
    for path in [*(path for path in old if _identity(path) not in roots), *folder.glob(f"{_GONE}*")]:
        gone = path if path.name.startswith(_GONE) else folder / f"{_GONE}{os.urandom(8).hex()}"
        with contextlib.suppress(OSError):
            path.rename(gone)  # so that nobody finds half of it
            remove_tree(gone)


def _is_old(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.is_dir() and not path.is_symlink() and time.time() - path.stat().st_mtime > KEPT
    return False


def _identity(path: Path) -> tuple[int, int]:
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_dev, status.st_ino
    return -1, -1


def _roots_of_processes() -> set[tuple[int, int]]:
    """What the processes of this host see as their root: a jailed machine keeps the tree it lives in."""
    return {_identity(Path("/proc", pid, "root")) for pid in os.listdir("/proc") if pid.isdecimal()}
