"""Makes a stream of entries out of files and folders of this computer."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence

from insula.errors import HostLacks, NotFound, UsageError
from insula.guest.entries import END, FIFO, FILE, FOLDER, HARD_LINK, LINK, Entry, batched

CONTENTS = b"."  # the root name of `folder/.`: not the folder, but what is in it
_READ = 262_144
_DOUBTED = 65_536  # bytes a file may claim to have, though no disk holds any of them, and not be believed
_MADE_UP_MOST = 16 << 20  # bytes of a file whose content is made while it is read
_ORDINARY = 0o777


class Packer:
    """Iterating yields the stream, once. ``names`` are the names of its roots, in order.

    A source `folder/.` means the folder's contents; its root is named ``.``. Links are packed as links. Unless
    ``archive``, everything belongs to root and special mode bits are left out, as `cp -r` by root does. ``warnings``
    grows meanwhile: sentences about what could not be taken along. Raises NotFound, UsageError (``same_name``) at once,
    HostLacks (``unreadable``) while iterating.
    """

    def __init__(self, sources: Sequence[str | os.PathLike[str]], *, archive: bool = False) -> None:
        self.warnings: list[str] = []
        self._archive = archive
        self._roots = [_root(os.fspath(source)) for source in sources]
        self.names = tuple(name for _, name in self._roots)
        self._links: dict[tuple[int, int], bytes] = {}
        self._users: dict[int, str] = {}
        self._groups: dict[int, str] = {}
        if len(set(self.names)) < len(self.names):
            raise UsageError("two of the sources have the same name", code="same_name", hint="copy them one by one")

    def __iter__(self) -> Iterator[bytes | memoryview]:
        return batched(self._parts())

    def _parts(self) -> Iterator[bytes | memoryview]:
        for path, name in self._roots:
            yield from self._tree(path, name)
        yield END

    def _tree(self, root: bytes, name: bytes) -> Iterator[bytes | memoryview]:
        waiting = [(root, name)]  # a stack: what is in a folder comes right after it
        while waiting:
            path, shown = waiting.pop()
            try:
                status = os.lstat(path)
                if stat.S_ISDIR(status.st_mode):
                    inside = sorted(os.listdir(path), reverse=True)
                    waiting += ((os.path.join(path, each), shown + b"/" + each) for each in inside)
                    yield self._entry(shown, FOLDER, status).encode()
                else:
                    yield from self._other(path, shown, status)
            except FileNotFoundError:
                self.warnings.append(f"{os.fsdecode(path)} vanished while it was copied")
            except PermissionError as cause:
                raise HostLacks(f"cannot read {os.fsdecode(path)}: permission denied", code="unreadable") from cause

    def _other(self, path: bytes, shown: bytes, status: os.stat_result) -> Iterator[bytes | memoryview]:
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            first = self._links.setdefault((status.st_dev, status.st_ino), shown)
            if first != shown:
                yield self._entry(shown, HARD_LINK, status, target=first).encode()
                return
        if stat.S_ISREG(status.st_mode):
            yield from self._file(path, shown)
        elif stat.S_ISLNK(status.st_mode):
            yield self._entry(shown, LINK, status, target=os.readlink(path)).encode()
        elif stat.S_ISFIFO(status.st_mode):
            yield self._entry(shown, FIFO, status).encode()
        else:
            self.warnings.append(f"{os.fsdecode(path)} was left out: neither a file nor a folder nor a link")

    def _file(self, path: bytes, shown: bytes) -> Iterator[bytes | memoryview]:
        # It may have been replaced since lstat, even by a fifo, on which opening would hang without O_NONBLOCK.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                self.warnings.append(f"{os.fsdecode(path)} was replaced while it was copied")
                return
            if is_doubtful(status):
                content = _read_out(descriptor, path)
                yield self._entry(shown, FILE, status, size=len(content)).encode()
                yield content
                return
            yield self._entry(shown, FILE, status, size=status.st_size).encode()
            left = status.st_size
            while left:
                piece = os.read(descriptor, min(left, _READ))
                if not piece:
                    self.warnings.append(f"{os.fsdecode(path)} became shorter while it was copied")
                    piece = bytes(min(left, _READ))
                left -= len(piece)
                yield piece
        finally:
            os.close(descriptor)

    def _entry(self, shown: bytes, kind: str, status: os.stat_result, *, size: int = 0, target: bytes = b"") -> Entry:
        entry = Entry(shown, kind, mode=status.st_mode & _ORDINARY, mtime_ns=max(0, status.st_mtime_ns), size=size, target=target)
        if self._archive:
            entry.mode = stat.S_IMODE(status.st_mode)
            entry.uid, entry.gid = status.st_uid, status.st_gid
            entry.uname, entry.gname = self._user(status.st_uid), self._group(status.st_gid)
        return entry

    def _user(self, uid: int) -> str:
        if uid not in self._users:
            import pwd

            self._users[uid] = ""
            with contextlib.suppress(KeyError):
                self._users[uid] = pwd.getpwuid(uid).pw_name
        return self._users[uid]

    def _group(self, gid: int) -> str:
        if gid not in self._groups:
            import grp

            self._groups[gid] = ""
            with contextlib.suppress(KeyError):
                self._groups[gid] = grp.getgrgid(gid).gr_name
        return self._groups[gid]


def is_doubtful(status: os.stat_result) -> bool:
    """Whether a file may hold something else than its size says: those of /proc and /sys say 0 or a page, whatever is in them."""
    return status.st_size == 0 or (status.st_blocks == 0 and status.st_size <= _DOUBTED)


def _read_out(descriptor: int, path: bytes) -> bytes:
    """All of a file whose size is not known before. Raises HostLacks (``file_too_large``)."""
    content = bytearray()
    while piece := os.read(descriptor, _READ):
        content += piece
        if len(content) > _MADE_UP_MOST:
            raise HostLacks(f"cannot copy {os.fsdecode(path)}: it has no size, and no end in sight", code="file_too_large")
    return bytes(content)


def _root(source: str) -> tuple[bytes, bytes]:
    """The path to read and the name it has in the stream."""
    path = os.fsencode(source)
    if not os.path.lexists(path):
        raise NotFound(f"no such file: {source}", code="no_such_file")
    name = os.path.basename(path.rstrip(b"/"))
    if name in (b"", b".", b".."):
        return os.path.realpath(path), CONTENTS if name != b".." else os.path.basename(os.path.realpath(path)) or CONTENTS
    # A slash at the end follows a link, as for every program.
    return (os.path.realpath(path) if path.endswith(b"/") else path), name
