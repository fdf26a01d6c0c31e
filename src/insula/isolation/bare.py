"""Where no whole jail can be had (bubblewrap is missing, or nobody like us may make user namespaces), and the machine's owner
said that it may run without: as much of one as can be had, made by the keeper (native/keeper/bare.c).

What that is on this host is found out by trying, each time: nothing is believed of a host that may have been changed since.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

from insula.errors import ChildFailed, HostLacks
from insula.host.process import find_program, run
from insula.isolation.jail import Jail, jail_argv, limit_words
from insula.isolation.roots import KEEPER_INSIDE
from insula.store import names

_PATIENCE: Final = 30.0  # seconds for what takes milliseconds
# What strerror(3) says where there may be none (EPERM, EACCES), where there are too few (ENOSPC, EUSERS: namespaces(7)), and
# where the kernel knows none (EINVAL, ENOSYS); and bubblewrap's own words for two of them.
_REFUSALS: Final = (
    *("Operation not permitted", "Permission denied", "No space left on device", "Too many users"),
    *("Invalid argument", "Function not implemented", "because the kernel does not", "max_*_namespaces exceeded"),
)


class Way(StrEnum):
    """How namespaces are made without bubblewrap."""

    USER = "user"
    ROOT = "root"
    NONE = "none"


_LACKS: Final = {
    Way.USER: "bubblewrap; the keeper itself made its namespaces",
    Way.ROOT: "a user namespace",
    Way.NONE: "namespaces and a root of its own; it is among this host's files, processes and networks",
}
# Layers that are not to be had so; see layers.py.
_ABSENT: Final = {
    Way.USER: frozenset[str](),
    Way.ROOT: frozenset({"namespaces"}),
    Way.NONE: frozenset({"namespaces", "read-only root", "no network"}),
}


def find_way(root: Path, uid: int | None, keeper: Path) -> Way | None:
    """What can be had here for a machine of user ``uid`` whose jail has this ``root``; None: the whole jail.

    Raises HostLacks (``jail_refused``) when a try fails for anything else than that this host has, or allows, no such thing: a
    host that is short of memory for a moment, or very busy, has a jail none the less.
    """
    jail, words = Jail(root, uid), [KEEPER_INSIDE, "--version"]
    if find_program("bwrap") is not None and _can_be_had(jail_argv(jail, words)):
        return None
    ways = [Way.USER, Way.ROOT] if os.geteuid() == 0 else [Way.USER]
    return next((way for way in ways if _can_be_had(bare_argv(way, jail, keeper, words))), Way.NONE)


def _can_be_had(argv: Sequence[str]) -> bool:
    try:
        run(argv, timeout=_PATIENCE)
    except ChildFailed as failure:
        if failure.status > 0 and is_refusal(failure.output):
            return False
        raise HostLacks(
            f"it cannot be told what can be had of the machine's jail: {failure.message}", code="jail_refused", hint="try again"
        ) from failure
    return True


def is_refusal(untrusted_words: str) -> bool:
    """Pure: whether what bubblewrap or the keeper said in the end means that this host does not let us, now or later."""
    lines = untrusted_words.strip().splitlines()
    return bool(lines) and any(words in lines[-1] for words in _REFUSALS)


def bare_argv(way: Way, jail: Jail, keeper: Path, command: Sequence[str]) -> list[str]:
    """Pure: as `jail_argv`, with what ``way`` gives. Of a jail's devices there is none but /dev/null. In ``NONE`` nothing is
    shown and the paths of ``command`` are the host's."""
    words = [str(keeper), "enter", *limit_words(jail), "--", str(keeper), "bare", "--way", str(way)]
    if way is not Way.NONE:
        words += ["--root", str(jail.root)]
        for source, place in ((Path("/dev/null"), "/dev/null"), *jail.shown):
            words += ["--show", str(source), f"{jail.root}{place}"]
    if jail.uid is not None:
        words += ["--uid", str(jail.uid)]
    for member in jail.groups:
        words += ["--member", str(member)]
    if jail.calls is not None:
        words += ["--calls", str(jail.calls)]
    return [*words, "--", *command]


def note_way(run_folder: Path, way: Way) -> None:
    """So that it shows of a machine that runs so."""
    (run_folder / names.UNJAILED).write_text(way)


def noted_way(run_folder: Path) -> Way | None:
    """How the machine that runs there does; None: in a whole jail."""
    try:
        return Way((run_folder / names.UNJAILED).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None


def lacking(run_folder: Path) -> str | None:
    """What the machine that runs there runs without; None: nothing of its jail."""
    way = noted_way(run_folder)
    return None if way is None else _LACKS[way]


def not_to_be_had(way: Way) -> frozenset[str]:
    """Pure: the names of the layers that a machine does without."""
    return _ABSENT[way]
