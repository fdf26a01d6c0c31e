"""Writing a machine's memory behind it, as it was at an instant: QEMU's background snapshot, for builds without mapped-ram.

The guest stands while QEMU takes its devices' state and has all its memory protected from writing (the kernel's userfaultfd). It
goes on, and QEMU writes each page before the guest may change it. So the instant is the beginning, and the disks have switched
before. What is written is an ordinary stream, the devices after the memory.

There is no event for the moment from which the guest may go on: it is when the first page of memory is in the stream.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from pathlib import Path
from typing import Final

from insula.engines.qemu.outgoing import (
    DEVICES,
    PATIENCE,
    UNBOUNDED,
    capable,
    failed,
    is_over,
    let_run,
    set_capabilities,
    wait_tidy,
    why,
)
from insula.engines.qemu.qmp import Monitor, Refused
from insula.errors import InsulaError
from insula.host.files import explain_os_error

_CAPABILITY: Final = "background-snapshot"
_NAME: Final = "behind"
_PIECE: Final = 1 << 20  # the largest pipe an ordinary user may have, too
# In a stream (QEMU's migration/savevm.c): the beginning of the section ``ram``, its number before its name; after each part of a
# section a footer with that number; the next part of it.
_NAME_OF_MEMORY: Final = b"\x03ram"
_START, _PART, _FOOTER = b"\x01", b"\x02", b"\x7e"


def can_track(monitor: Monitor) -> bool:
    """Whether this QEMU, here, for this machine's memory, can do that: it tries as it accepts the capability."""
    try:
        set_capabilities(monitor, (_CAPABILITY,), True)
    except Refused:
        return False
    set_capabilities(monitor, (_CAPABILITY,), False)
    return True


def has_begun(stream: bytes) -> bool:
    """Pure: whether the first part of the memory is in the beginning of a stream, after the list of its blocks."""
    at = stream.find(_NAME_OF_MEMORY)
    if at < 5 or stream[at - 5 : at - 4] != _START:
        return False
    number = stream[at - 4 : at]
    listed = stream.find(_FOOTER + number, at)
    return listed >= 0 and _PART + number in stream[listed:]


class _Copy:
    """A thread that copies what comes out of a pipe into a file. ``over`` is set when the guest may go on (``begun``), and when
    that will never be."""

    def __init__(self, source: int, target: int) -> None:
        self.over = threading.Event()
        self.begun = False
        self.failure: OSError | None = None
        self._source, self._target = source, target
        self._thread = threading.Thread(target=self._copy)
        self._thread.start()

    def _copy(self) -> None:
        head = b""
        try:
            with os.fdopen(self._source, "rb", buffering=0) as source, os.fdopen(self._target, "wb") as target:
                while piece := source.read(_PIECE):
                    target.write(piece)
                    if not self.begun:
                        head += piece
                        self.begun = has_begun(head)
                        if self.begun:
                            self.over.set()
        except OSError as failure:
            self.failure = failure
        finally:
            self.over.set()

    def join(self) -> None:
        self._thread.join()


def write_behind(monitor: Monitor, path: Path) -> float | None:
    """Write a machine's state to ``path``, all of it of this instant. The guest stands; it goes on after some milliseconds, and
    on return all is written. Since when it runs, by QEMU's clock; None when it stands still and there is no such file, because
    QEMU could not even begin. Raises HostLacks (``no_space``), InsulaError."""
    with capable(monitor, _CAPABILITY):
        monitor.execute("migrate-set-parameters", {"max-bandwidth": UNBOUNDED})
        copy = _open(monitor, path)
        try:
            monitor.execute("migrate", {"uri": f"fd:{_NAME}"})
        except InsulaError:
            with contextlib.suppress(InsulaError):
                monitor.execute("closefd", {"fdname": _NAME})
            copy.join()
            raise
        resumed = let_run(monitor, copy.over.wait(DEVICES) and copy.begun)
        event = monitor.wait_event(is_over, PATIENCE if copy.begun else 0.0)
        if event is None:
            monitor.execute("migrate_cancel")
        wait_tidy(monitor)
        copy.join()
    if not copy.begun and copy.failure is None:
        path.unlink()
        return None
    if copy.failure is not None:
        raise explain_os_error(copy.failure, path) from copy.failure
    if event is None or event.data["status"] != "completed":
        raise failed(why(monitor))
    return resumed


def _open(monitor: Monitor, path: Path) -> _Copy:
    """Hand QEMU the end of a pipe, for `fd:`. Raises HostLacks, InsulaError."""
    try:
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as cause:
        raise explain_os_error(cause, path) from cause
    source, end = os.pipe2(os.O_CLOEXEC)
    with contextlib.suppress(OSError):
        fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, _PIECE)
    try:
        monitor.execute("getfd", {"fdname": _NAME}, [end])
    except BaseException:
        os.close(source)
        os.close(target)
        raise
    finally:
        os.close(end)
    return _Copy(source, target)
