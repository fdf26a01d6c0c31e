"""What the kernel shows of a jailed process: what it holds open, and its memory.

Of one that runs as a sub-id (subids.py) it shows that to nobody outside its user namespace, though that is ours: there the keeper
looks from inside (native/keeper/look.c).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from insula.errors import ChildFailed
from insula.host.native import native_path
from insula.host.process import run

_HOLDS_IT_NOT: Final = 1
_ANSWER: Final = 16  # bytes, at most


def links_of(pid: int) -> list[str]:
    """What the descriptors of a process lead to. Format: proc(5), fd. Raises OSError when that may not be seen."""
    folder = Path(f"/proc/{pid}/fd")
    try:
        links = list(folder.iterdir())
    except PermissionError:
        return _links_inside(pid)
    found = []
    for link in links:
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(link))
    return found


class Memory(msgspec.Struct, frozen=True):
    """Open files of a process's folder in proc(5)."""

    pagemap: int
    content: int
    maps: int


@contextlib.contextmanager
def memory_of(pid: int, held: os.stat_result) -> Iterator[Memory | None]:
    """The memory of a process that holds the file ``held``; None when it does not. Raises OSError when that may not be seen."""
    with contextlib.ExitStack() as stack:

        def kept(descriptor: int) -> int:
            stack.callback(os.close, descriptor)
            return descriptor

        folder = kept(os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        try:
            there = _holds(folder, held)
            opened = [kept(_open(folder, name)) for name in ("pagemap", "mem")] if there else []
        except PermissionError:
            opened = [kept(descriptor) for descriptor in _opened_inside(pid, held)]
        yield Memory(opened[0], opened[1], kept(_open(folder, "maps"))) if opened else None


def _open(folder: int, name: str) -> int:
    return os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)


def _holds(process: int, wanted: os.stat_result) -> bool:
    descriptors = _open(process, "fd")
    try:
        for name in os.listdir(descriptors):
            with contextlib.suppress(FileNotFoundError):
                seen = os.stat(name, dir_fd=descriptors)
                if (seen.st_dev, seen.st_ino) == (wanted.st_dev, wanted.st_ino):
                    return True
    finally:
        os.close(descriptors)
    return False


def _opened_inside(pid: int, held: os.stat_result) -> list[int]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        words = ["look", str(pid), str(held.st_dev), str(held.st_ino), str(theirs.fileno())]
        done = run([str(native_path("insula-keeper")), *words], pass_fds=[theirs.fileno()], check=False)
        if done.status == _HOLDS_IT_NOT:
            return []
        if done.status:
            raise PermissionError(done.stderr.decode(errors="replace"))
        return socket.recv_fds(ours, _ANSWER, 2, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)[1]


def _links_inside(pid: int) -> list[str]:
    try:
        listing = run([str(native_path("insula-keeper")), "look", str(pid)]).stdout
    except ChildFailed as failure:
        raise PermissionError(failure.message) from failure
    return os.fsdecode(listing).split("\0")[:-1]
