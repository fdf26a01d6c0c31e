"""From this process's terminal and pipes to the streams of a request."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from insula.client.streams import LocalStreams, PipeStreams, TerminalStreams
from insula.errors import AlreadyExists, UsageError

CONSOLE_ESCAPE = b"\x1d"


def window_size() -> tuple[int, int]:
    """Rows and columns of our terminal; 24 × 80 without one."""
    for descriptor in (1, 0, 2):
        try:
            columns, rows = os.get_terminal_size(descriptor)
        except OSError:
            continue
        return rows or 24, columns or 80
    return 24, 80


def guest_streams(*, tty: bool, interactive: bool) -> LocalStreams:
    """Streams for a command in a guest: our terminal in raw mode for ``tty``, otherwise our descriptors as they are.

    Without ``interactive`` standard input stays ours: the command finds its input at its end, as with docker.
    """
    if tty and interactive:
        return TerminalStreams()
    return PipeStreams(stdin=0 if interactive else None)


@contextlib.contextmanager
def file_streams(path: str) -> Iterator[LocalStreams]:
    """Streams whose output goes to a new file; ``-`` is standard output. Raises AlreadyExists (``file_exists``)."""
    if path == "-":
        streams = PipeStreams(stdin=None, signals=())
        yield streams
        streams.close()
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise AlreadyExists(f"there is a file '{path}' already", code="file_exists", hint="choose another name") from None
    try:
        streams = PipeStreams(stdin=None, stdout=descriptor, stderr=None, signals=())
        yield streams
        streams.close()
    finally:
        os.close(descriptor)


def console_streams() -> LocalStreams:
    """Streams for a console: our terminal, left by Ctrl-], or our descriptors when there is none."""
    try:
        return TerminalStreams(escape=CONSOLE_ESCAPE)
    except UsageError:
        return PipeStreams(signals=())  # Ctrl-C leaves: a serial line has no signals
