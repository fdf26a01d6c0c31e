"""The events of a machine: lines of JSON in a file of bounded size, appended by the keeper and by verbs alike."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from insula.store import names

MOST_BYTES = 256 * 1024


def append_event(folder: Path, event: str, **data: object) -> None:
    """Note what happened. A full disk or a vanished folder loses the note, never the verb that wrote it."""
    line = json.dumps({"time": time.time_ns(), "event": event, "data": data}, ensure_ascii=True).encode() + b"\n"
    with contextlib.suppress(OSError):
        descriptor = os.open(folder / names.EVENTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(descriptor).st_size + len(line) > MOST_BYTES:
                _turn_over(folder, descriptor)
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


def _turn_over(folder: Path, descriptor: int) -> None:
    """Keep one old file. The file itself stays, because a keeper may hold it open: its content moves."""
    (folder / names.EVENTS_OLD).write_bytes(_kept(folder / names.EVENTS))
    os.ftruncate(descriptor, 0)


def _kept(path: Path) -> bytes:
    """What a file of events holds: never more than it should, whatever a jailed process made of it."""
    with open(path, "rb") as stream:
        return stream.read(MOST_BYTES)


def read_events(folder: Path) -> Iterator[dict[str, object]]:
    """All events kept, oldest first. Lines that are not JSON objects (a torn write) are passed over."""
    for name in (names.EVENTS_OLD, names.EVENTS):
        with contextlib.suppress(FileNotFoundError):
            for untrusted_line in _kept(folder / name).splitlines():
                with contextlib.suppress(ValueError, RecursionError):
                    event = json.loads(untrusted_line)
                    if isinstance(event, dict):
                        yield event
