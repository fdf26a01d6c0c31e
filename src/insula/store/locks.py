"""Locks between processes: one verb at a time changes a machine, and whoever waits learns who is at work.

A lock is an ``flock`` on a file that also says who holds it. The kernel frees it when its holder dies, whatever way.
The order is machine < layer < image < network: a verb takes them in that order only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from insula.errors import Busy, NotFound

_POLL_START = 0.01
_POLL_MOST = 0.2
_TRIES = 3
# Verbs nobody asked for: they hold a machine for instants, and whoever comes meanwhile waits so many seconds for them.
_BEHIND = {"guard": 30.0, "reclaim": 90.0, "merge": 30.0, "settle": 30.0, "recover": 30.0}
_UNSIGNED = 1.0  # whoever holds a lock without a card has just taken it, or is just letting go


@contextlib.contextmanager
def machine_lock(lock: Path, name: str, verb: str, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a machine's lock while changing it.

    Waits at most ``patience`` seconds for another holder. Raises Busy naming the holder's verb, its age and pid, or
    NotFound when the machine's folder is gone (also when it went or was renamed while we waited).
    """
    descriptor = _take(lock, name, time.monotonic() + patience)
    try:
        sign(descriptor, verb)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)


def _take(lock: Path, name: str, deadline: float) -> int:
    pause, begun = _POLL_START, time.monotonic()
    while True:
        descriptor = _open(lock, name)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_still_there(descriptor, lock):
                return descriptor
            os.close(descriptor)
            continue
        except BlockingIOError:
            who = _who(descriptor)
            patience = _BEHIND.get(str(who.get("verb")), 0.0) if who else _UNSIGNED
            remaining = max(deadline, begun + patience) - time.monotonic()
            if remaining <= 0:
                os.close(descriptor)
                raise _busy(name, who) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        # flock has no timeout; a short, growing pause is what every tool with a bounded wait does.
        threading.Event().wait(min(pause, remaining))
        pause = min(pause * 2, _POLL_MOST)


def _open(lock: Path, name: str) -> int:
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as cause:
        if cause.errno in (errno.ENOENT, errno.ENOTDIR):
            raise NotFound(f"no machine named '{name}'", code="machine_not_found", hint="to see them: insula list") from None
        raise


def is_still_there(descriptor: int, lock: Path) -> bool:
    """Whether the file we locked is still the one at that path (what it guards may have been renamed or deleted)."""
    with contextlib.suppress(OSError):
        ours, theirs = os.fstat(descriptor), os.stat(lock, follow_symlinks=False)
        return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)
    return False


def sign(descriptor: int, verb: str) -> None:
    """Leave our card. A full disk must not stop the very verb that would make room, so failure is no error."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"verb": verb, "pid": os.getpid(), "since": time.time()}).encode(), 0)


def _who(descriptor: int) -> dict[str, object]:
    with contextlib.suppress(OSError, ValueError):
        card = json.loads(os.pread(descriptor, 4096, 0))
        if isinstance(card, dict):
            return card
    return {}


def _busy(name: str, card: dict[str, object]) -> Busy:
    verb, pid, since = card.get("verb"), card.get("pid"), card.get("since")
    if isinstance(since, (int, float)):
        detail = f"{verb}, started {max(0, time.time() - since):.0f} s ago by pid {pid}"
    else:
        detail = "another command is at work on it"
    return Busy(f"{name} is busy: {detail}", hint="wait for it, or use 'stop --force' or 'delete --force'")


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, for instants in which things in it come and go. It is on the folder itself: no file is left."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held(descriptor_path: Path) -> Iterator[bool]:
    """Try to take a lock file that guards a half-made folder; yields whether it was free. Used to find abandoned ones."""
    try:
        descriptor = os.open(descriptor_path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        yield True
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Of two who do the same work at once the second waits for the first. The file goes when the work is done."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if is_still_there(descriptor, lock):
            break
        os.close(descriptor)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            lock.unlink()  # while we hold it: who opened it meanwhile sees that it is gone
        os.close(descriptor)


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[bool]:
    """Of two who would do the same work at once the second is told so: yields whether nobody does it. The file goes when the work
    is done."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if not _is_free(descriptor):
            yield False
            return
        try:
            yield is_still_there(descriptor, lock)
        finally:
            if is_still_there(descriptor, lock):
                lock.unlink()
    finally:
        os.close(descriptor)


def _is_free(descriptor: int) -> bool:
    """Take a lock; whoever sweeps holds one for an instant, to see whether somebody does the work."""
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        threading.Event().wait(_POLL_MOST)
    return False


def sweep_locks(folder: Path) -> None:
    """Remove the files of `only_one` in ``folder`` whose work nobody does any more: who did it died."""
    for lock in folder.glob("*.lock"):
        with held(lock) as free:
            if free:
                lock.unlink(missing_ok=True)  # while we hold it, as above
