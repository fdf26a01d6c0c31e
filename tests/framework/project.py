"""The project's own files, as the style tests see them."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def project_files() -> list[Path]:
    """Every file that belongs to the project: those git tracks, and new ones it does not ignore."""
    words = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    answer = subprocess.run(words, capture_output=True, check=True).stdout.decode()
    return sorted(path for name in answer.split("\0") if name and (path := ROOT / name).is_file())


def python_files() -> list[Path]:
    return [path for path in project_files() if path.suffix == ".py"]


def shell_files() -> list[Path]:
    """Shell scripts, by their name or first line."""
    return [path for path in project_files() if path.suffix == ".sh" or _first_line(path).endswith((b"/sh", b"bash"))]


def _first_line(path: Path) -> bytes:
    with path.open("rb") as stream:
        line = stream.readline(80).strip()
    return line if line.startswith(b"#!") else b""
