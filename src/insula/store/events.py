"""The events of a machine: lines of JSON in a file of bounded size, appended by the keeper and by verbs alike.

When the file is full its content moves to a second one. While the machine has a keeper, the keeper does that, so that none
of its own events can fall between reading and emptying; whoever appends or moves holds the file's lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from insula.store import names

MOST_BYTES = 256 * 1024
# Twice as much while a keeper is expected to move it. What a jailed process made longer is read from its end.
_READ_BYTES = 2 * MOST_BYTES + 65536
_TRIES, _PAUSE = 20, 0.005  # a keeper that was taken over may hold the lock for ever


def append_event(folder: Path, event: str, **data: object) -> None:
    """Note what happened. A full disk or a vanished folder loses the note, never the verb that wrote it."""
    line = json.dumps({"time": time.time_ns(), "event": event, "data": data}, ensure_ascii=True).encode() + b"\n"
    with contextlib.suppress(OSError):
        descriptor = os.open(folder / names.EVENTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            _try_lock(descriptor)
            most = 2 * MOST_BYTES if (folder / names.RUN).exists() else MOST_BYTES
            if os.fstat(descriptor).st_size + len(line) > most:
                _turn_over(folder, descriptor)
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


def _try_lock(descriptor: int) -> None:
    """Hold the file's lock; after a tenth of a second go on without: then one event may be lost, but no verb hangs."""
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        threading.Event().wait(_PAUSE)


def _turn_over(folder: Path, descriptor: int) -> None:
    """Keep one old file. The file itself stays, because a keeper may hold it open: its content moves."""
    (folder / names.EVENTS_OLD).write_bytes(_kept(folder / names.EVENTS))
    os.ftruncate(descriptor, 0)


def _kept(path: Path) -> bytes:
    """The last of what a file of events holds: never more than it should, whatever a jailed process made of it."""
    with open(path, "rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - _READ_BYTES))
        return stream.read(_READ_BYTES)


def read_events(folder: Path) -> Iterator[dict[str, object]]:
    """All events kept, oldest first. Lines that are not JSON objects (a torn write) are passed over."""
    for name in (names.EVENTS_OLD, names.EVENTS):
        with contextlib.suppress(FileNotFoundError):
            for untrusted_line in _kept(folder / name).splitlines():
                with contextlib.suppress(ValueError, RecursionError):
                    event = json.loads(untrusted_line)
                    if isinstance(event, dict):
                        yield event
