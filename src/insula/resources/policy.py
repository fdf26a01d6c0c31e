"""What this host's owner allows: how much more may be promised to machines than there is, and what may be taken back from them.

A file in TOML, ``policy.toml`` in the state folder, or else ``/etc/insula/policy.toml``; without either what is usual holds.
``$INSULA_OVERCOMMIT`` goes before the file's ``memory-overcommit``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import msgspec

from insula.errors import UsageError
from insula.host.files import read_plain
from insula.model.text import clean

OVERCOMMIT: Final = "INSULA_OVERCOMMIT"
FILE: Final = "policy.toml"
SYSTEM: Final = Path("/etc/insula") / FILE

_MEMORY: Final = 2
_MOST: Final = 100
_MOST_DISK: Final = 10_000
_UNCOUNTED: Final = "unlimited"
_NEVER: Final = "never"
_WEEK: Final = 7 * 24 * 60  # minutes
# Each key, the most it may be (it is a whole number from 1 on), and the word for None, if it may be that.
_NUMBERS: Final[dict[str, tuple[int, str]]] = {
    "memory-overcommit": (_MOST, ""),
    "cpu-overcommit": (_MOST, _UNCOUNTED),
    "disk-overcommit": (_MOST_DISK, _UNCOUNTED),
    "balloon-floor": (100, _NEVER),
    "suspend-idle": (_WEEK, _NEVER),
}
_SWITCHES: Final = ("ksm",)
_KEYS: Final = (*_NUMBERS, *_SWITCHES)


class Policy(msgspec.Struct, frozen=True):
    """How many times what there is may be promised: of memory, of CPUs, of room on the disk; None: it is not counted.

    Not to count CPUs is usual, for machines share them fairly; nor the disk, for a machine whose disk cannot grow stands still
    until it can, and loses nothing.

    What may be done to machines when memory is short: ``balloon``: their guests give back what they do not use, down to so many
    hundredths of what they have (None: nothing); ``ksm``: pages with the same in them become one; ``suspend``: who has been idle
    for so many minutes is suspended (None: nobody). ``source``: where that is said.
    """

    memory: int = _MEMORY
    cpu: int | None = None
    disk: int | None = None
    balloon: int | None = 50
    ksm: bool = False
    suspend: int | None = None
    source: str = "what is usual"


def read_policy(home: Path) -> Policy:
    """The policy for the state folder ``home``. Raises UsageError (``bad_policy``, ``bad_overcommit``)."""
    policy = next((_parse(path, text) for path in (home / FILE, SYSTEM) if (text := _read(path)) is not None), Policy())
    chosen = os.environ.get(OVERCOMMIT)
    if not chosen:
        return policy
    return msgspec.structs.replace(policy, memory=_chosen(chosen), source=f"{policy.source}; memory: ${OVERCOMMIT}")


def _chosen(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 3 and 1 <= int(text) <= _MOST):
        raise UsageError(
            f"{OVERCOMMIT} is '{text[:40]}'",
            code="bad_overcommit",
            hint=f"1 counts a machine with all it may come to own, {_MEMORY}, which is the default, with half; up to {_MOST}",
        )
    return int(text)


def _read(path: Path) -> str | None:
    try:
        return read_plain(path)
    except FileNotFoundError:
        return None
    except OSError as cause:
        raise _bad(path, 1, f"it cannot be read: {cause.strerror}") from None


def _parse(path: Path, text: str) -> Policy:
    import tomllib

    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as cause:  # also of numbers too long, and lists too deep, for its reader
        match = re.search(r"line (\d+)", str(cause))
        raise _bad(path, int(match[1]) if match else text.count("\n") + 1, str(cause)) from None
    values = {key.partition("-")[0]: _checked(path, _line_of(text, key), key, value) for key, value in table.items()}
    return msgspec.structs.replace(Policy(source=str(path)), **values)


def _checked(path: Path, line: int, key: str, value: object) -> int | bool | None:
    """What a key is set to; None where its word says so. Raises UsageError (``bad_policy``)."""
    if key in _SWITCHES:
        if isinstance(value, bool):
            return value
        raise _bad(path, line, f"'{key}' is true or false")
    if key not in _NUMBERS:
        raise _bad(path, line, f"there is no '{clean(key, longest=80)}'")
    most, word = _NUMBERS[key]
    if word and value == word:
        return None
    if type(value) is int and 1 <= value <= most:
        return value
    raise _bad(path, line, f"'{key}' is a whole number from 1 to {most}" + (f", or '{word}'" if word else ""))


def _line_of(text: str, key: str) -> int:
    """Where a key, or a table, stands; TOML's own reader does not tell."""
    pattern = re.compile(rf"\s*\[*\s*[\"']?{re.escape(key)}\b")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 1)


def _bad(path: Path, line: int, what: str) -> UsageError:
    return UsageError(f"{path}, line {line}: {what}", code="bad_policy", hint=f"it may hold: {', '.join(_KEYS)}")
