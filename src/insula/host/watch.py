"""Hear of changes in folders as they happen (Linux inotify, see inotify(7))."""

from __future__ import annotations

import ctypes
import os
import select
import struct
from pathlib import Path

_IN_MODIFY = 0x2
_IN_MOVED_FROM = 0x40
_IN_MOVED_TO = 0x80
_IN_CREATE = 0x100
_IN_DELETE = 0x200
_EVENT = struct.Struct("iIII")

_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """Tells that something in the watched folders (not below them) was written, made, moved or deleted."""

    def __init__(self) -> None:
        self._descriptor = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._folders: dict[int, Path] = {}

    def add(self, folder: Path) -> None:
        """Watch a folder too; adding one twice changes nothing. A folder that is gone is passed over."""
        mask = _IN_MODIFY | _IN_CREATE | _IN_DELETE | _IN_MOVED_FROM | _IN_MOVED_TO
        number = _libc.inotify_add_watch(self._descriptor, os.fsencode(folder), mask)
        if number >= 0:
            self._folders[number] = folder

    def fileno(self) -> int:
        return int(self._descriptor)

    def wait_change(self, others: tuple[int, ...] = (), timeout: float | None = None) -> bool:
        """Wait for a change, or for one of ``others`` (descriptors) to be readable or hung up; whether it was a change."""
        poller = select.poll()
        poller.register(self._descriptor, select.POLLIN)
        for other in others:
            poller.register(other, select.POLLIN)
        ready = dict(poller.poll(None if timeout is None else timeout * 1000))
        if self._descriptor not in ready:
            return False
        while True:
            try:
                if len(os.read(self._descriptor, 65536)) < _EVENT.size:
                    return True
            except BlockingIOError:
                return True

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
