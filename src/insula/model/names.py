"""The names users give: what a machine may be called, how a generated name is made, how `NAME:PATH` and `NAME@SNAP` are read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from insula.errors import UsageError
from insula.model.text import clean

LONGEST_SHOWN = 80  # characters of what was given for a name, in a message about it
_ALIKE = 0.7  # of the letters (difflib's ratio): one wrong of four, but not `rename` for `remove`
_MACHINE = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")

_MANNERS = (
    "amber bold brisk calm clear crisp eager fair fond gentle glad grand keen kind light lively "
    "mellow merry mild neat noble proud quick quiet rapid sunny swift tidy warm wise"
).split()
_PLACES = (
    "aldabra bantry capri delos elba faroe gozo hvar iona jura kos lipari malta naxos oland "
    "paros rhodos samos skye sylt texel tinos ulva vis wight yell zante"
).split()


def check_machine_name(name: str) -> str:
    """``name`` itself when it can be a machine's (and so a host) name. Raises UsageError (``bad_name``)."""
    if _MACHINE.fullmatch(name) is None:
        raise UsageError(
            f"'{clean(name, longest=LONGEST_SHOWN)}' cannot be a machine's name",
            code="bad_name",
            hint="use 1 to 63 lower-case letters, digits and '-', beginning with a letter and not ending with '-'",
        )
    return name


def generate_machine_name() -> str:
    """A name people can say and type, such as ``calm-iona-3f``. The caller makes sure that it is free."""
    manner, place = (words[int.from_bytes(os.urandom(4)) % len(words)] for words in (_MANNERS, _PLACES))
    return f"{manner}-{place}-{os.urandom(1).hex()}"


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """At most three of ``known`` that ``name`` is a slip of the fingers from, or the beginning of."""
    import difflib

    names = sorted(known)
    begun = [each for each in names if len(name) > 1 and each.startswith(name)]
    return list(dict.fromkeys((*difflib.get_close_matches(name, names, n=3, cutoff=_ALIKE), *begun)))[:3]


def split_location(text: str) -> tuple[str | None, str]:
    """``web:/etc/hosts`` as (``web``, ``/etc/hosts``); a path of this computer as (None, path).

    As with scp, a name ends at the first colon unless a slash comes before it, so ``./a:b`` is a local path.
    """
    head, colon, tail = text.partition(":")
    if not colon or "/" in head or not head:
        return None, text
    return check_machine_name(head), tail


def split_snapshot(text: str) -> tuple[str, str]:
    """``web@before`` as (``web``, ``before``); ``web`` as (``web``, ``""``). Raises UsageError (``bad_name``) for ``web@``."""
    machine, at, snapshot = text.partition("@")
    if not machine or (at and not snapshot):
        raise UsageError(
            f"'{clean(text, longest=LONGEST_SHOWN)}' names no {'snapshot' if machine else 'machine'}",
            code="bad_name",
            hint="a snapshot is named MACHINE@SNAPSHOT, as in: web@before",
        )
    return machine, snapshot
