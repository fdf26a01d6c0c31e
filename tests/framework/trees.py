"""What is in a folder, to be compared with another."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def seen(root: Path) -> dict[str, tuple[int, int, bytes | str]]:
    """Mode, time and content or target of all below ``root``."""
    found: dict[str, tuple[int, int, bytes | str]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content: bytes | str = ""
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        found[os.fspath(path.relative_to(root))] = (stat.S_IMODE(status.st_mode), status.st_mtime_ns, content)
    return found
