"""What jailed processes may ask the kernel for: lists of system calls (``*.calls``), and what the kernel takes (``*.bpf``), which
``packaging/calls.py`` makes of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from insula.model.architectures import debian_architecture

_FOLDER: Final = Path(__file__).parent


def open_filter(jailed: str) -> int | None:
    """A descriptor for bubblewrap's ``--seccomp`` with the filter of ``jailed`` (``machine``); None where this computer's
    architecture has no list."""
    try:
        return os.open(_path(jailed), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def has_filter(jailed: str) -> bool:
    """Whether there is one for this computer's architecture."""
    return _path(jailed).exists()


def _path(jailed: str) -> Path:
    return _FOLDER / f"{jailed}-{debian_architecture(os.uname().machine)}.bpf"
