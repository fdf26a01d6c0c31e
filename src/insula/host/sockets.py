"""Unix sockets by path, however long the path: the kernel's 108 bytes are met by going through ``/proc/self/fd``."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

_ROOM = 5.0  # seconds


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def connect_unix(path: Path, *, wait: bool = True, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A connection, of a stream unless another ``kind`` is asked for.

    Raises FileNotFoundError or ConnectionRefusedError when nobody listens there.
    Who listens without ever accepting lets connections pile up; once there is no room for more, this raises BlockingIOError,
    without ``wait`` at once, else after some seconds.
    """
    connection = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
    # unix(7): a blocking connect waits for room as long as a send would (socket(7), SO_SNDTIMEO; struct timeval).
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(_ROOM), 1))
    try:
        if not wait:
            connection.setblocking(False)
        with _short(path) as short:
            connection.connect(short)
    except BaseException:
        connection.close()
        raise
    return connection


def listen_unix(path: Path, backlog: int = 64, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A listening socket at ``path``, which its owner alone may connect to."""
    listener = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
    try:
        with _short(path) as short:
            listener.bind(short)
        path.chmod(0o600)
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


def is_listening(path: Path) -> bool:
    """Whether something listens at ``path``; never waits for it."""
    try:
        connect_unix(path, wait=False).close()
    except BlockingIOError:
        return True
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        return False
    return True
