"""Writes a stream of entries from a guest into a folder of this computer. Nothing in the stream is trusted.

Every step goes through the descriptor of a folder already reached, one name at a time, and never follows a link: what an
entry names can only lie below the folder that was chosen. Content gets its final name when it is whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Sequence

from insula.errors import GuestError, InsulaError, NotFound, UsageError
from insula.guest.entries import FIFO, FILE, FOLDER, HARD_LINK, LINK, Entry, EntryReader, components
from insula.model.text import clean

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_WARNINGS_MAX = 1000
SLASH = "a slash at the end asks for a folder: make it first, or leave the slash out"
_ID_MAX = 0xFFFF_FFFE

Roots = dict[bytes, list[bytes]]


class Copied:
    """What `unpack` did. ``warnings`` are sentences about what it left out."""

    def __init__(self) -> None:
        self.entries = 0
        self.bytes = 0
        self.warnings: list[str] = []

    def warn(self, sentence: str) -> None:
        if len(self.warnings) < _WARNINGS_MAX:
            self.warnings.append(sentence)


def unpack(
    untrusted_chunks: Iterable[bytes | memoryview],
    destination: str | os.PathLike[str],
    roots: Sequence[tuple[bytes, bool]],
    *,
    archive: bool = False,
) -> Copied:
    """Write the stream's trees to ``destination``: into it when it is a folder, else (a single tree) under that name.

    ``roots`` are the names of the trees that were asked for, each with whether only its contents are meant; any other is
    refused. Modes (without setuid, setgid and sticky) and times are kept. With ``archive`` special bits are kept, too, and
    for root the owners. Devices and sockets are left out.

    Raises GuestError (``unsafe_entry``, ``path_too_long``, ``garbled``, ``truncated``), NotFound, UsageError, HostLacks
    (``no_space``).
    """
    base, placed = _place(os.fsencode(destination), roots)
    report = Copied()
    unpacker = _Unpacker(base, placed, archive, report)
    unpacker.unless_folder = _missing(os.fsencode(destination))
    reader = EntryReader(untrusted_chunks)
    try:
        while (entry := reader.next()) is not None:
            unpacker.take(entry, reader)
    finally:
        unpacker.close()
    return report


def _place(destination: bytes, roots: Sequence[tuple[bytes, bool]]) -> tuple[bytes, Roots]:
    """The folder that is written into, and for each root the names below it."""
    if len({name for name, _ in roots}) < len(roots):
        raise UsageError("two of the sources have the same name", code="same_name", hint="copy them one by one")
    if os.path.isdir(destination):
        return destination, {name: [] if contents else [name] for name, contents in roots}
    shown = os.fsdecode(destination)
    if destination.endswith(b"/") and os.path.lexists(destination.rstrip(b"/")):
        raise UsageError(f"not a folder: {shown}", code="not_a_folder")
    if len(roots) != 1:
        raise UsageError(f"not a folder: {shown}", code="not_a_folder", hint="several sources can only be copied into a folder")
    parent, name = os.path.split(destination.rstrip(b"/"))
    if not os.path.isdir(parent or b"."):
        raise NotFound(f"no such folder: {os.fsdecode(parent)}", code="no_such_folder")
    return parent or b".", {roots[0][0]: [name]}


def _missing(destination: bytes) -> InsulaError | None:
    """The error for anything but a folder that is to become ``destination``, when a slash at its end asks for one."""
    if not destination.endswith(b"/") or os.path.isdir(destination):
        return None
    return NotFound(f"no such folder: {os.fsdecode(destination)}", code="no_such_folder", hint=SLASH)


class _Folder:
    """A folder on the way to the entry at hand. ``entry``: we made it, and it gets its mode and time when it is complete."""

    __slots__ = ("descriptor", "entry", "name")

    def __init__(self, name: bytes, descriptor: int, entry: Entry | None = None) -> None:
        self.name = name
        self.descriptor = descriptor
        self.entry = entry


class _Unpacker:
    def __init__(self, base: bytes, roots: Roots, archive: bool, report: Copied) -> None:
        self._roots = roots
        self._archive = archive
        self._report = report
        self._stack = [_Folder(b"", os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))]
        self._base = os.fsdecode(base)
        self.unless_folder: InsulaError | None = None

    def close(self) -> None:
        """Complete the folders that are open."""
        try:
            self._leave(1)
        except OSError as cause:
            raise self._explained(cause, []) from cause
        finally:
            while self._stack:
                os.close(self._stack.pop().descriptor)

    def take(self, untrusted_entry: Entry, reader: EntryReader) -> None:
        names = self._local(untrusted_entry.path)
        if self.unless_folder is not None and untrusted_entry.kind != FOLDER and b"/" not in untrusted_entry.path:
            raise self.unless_folder
        if not names and untrusted_entry.kind != FOLDER:
            raise GuestError(f"not a folder in the guest: {clean(untrusted_entry.path)}", code="not_a_folder")
        if not names:
            return  # the folder whose contents are meant
        try:
            self._write(untrusted_entry, names, reader)
        except OSError as cause:
            raise self._explained(cause, names) from cause
        self._report.entries += 1

    def _local(self, untrusted_path: bytes) -> list[bytes]:
        """The names below the base of what the stream calls ``untrusted_path``."""
        first, *rest = components(untrusted_path)
        if first not in self._roots:
            raise GuestError(f"the guest sent what was not asked for: '{clean(untrusted_path)}'", code="unsafe_entry")
        return self._roots[first] + rest

    def _write(self, entry: Entry, names: list[bytes], reader: EntryReader) -> None:
        folder = self._enter(names[:-1])
        if entry.kind == FOLDER:
            self._folder(entry, names[-1], folder)
        elif entry.kind == FILE:
            self._file(entry, names[-1], folder, reader)
        elif entry.kind == LINK:
            self._link(entry, names[-1], folder)
        elif entry.kind == HARD_LINK:
            self._hard_link(entry, names[-1], folder)
        elif entry.kind == FIFO:
            self._fifo(entry, names[-1], folder)
        else:
            self._report.warn(f"{clean(entry.path)} was left out: neither a file nor a folder nor a link")

    # -- folders ------------------------------------------------------------------------------------------------------------
    def _enter(self, names: list[bytes]) -> int:
        """The descriptor of the folder below the base, reached name by name. Folders that were left are completed."""
        common = 0
        while common < len(names) and common + 1 < len(self._stack) and self._stack[common + 1].name == names[common]:
            common += 1
        self._leave(common + 1)
        for name in names[common:]:
            self._push(name)
        return self._stack[-1].descriptor

    def _push(self, name: bytes, entry: Entry | None = None) -> None:
        descriptor = os.open(name, _FOLDER_FLAGS, dir_fd=self._stack[-1].descriptor)
        self._stack.append(_Folder(name, descriptor, entry))

    def _leave(self, depth: int) -> None:
        while len(self._stack) > depth:
            folder = self._stack.pop()
            try:
                if folder.entry is not None:
                    self._dress(folder.descriptor, folder.entry)
            finally:
                os.close(folder.descriptor)

    def _folder(self, entry: Entry, name: bytes, folder: int) -> None:
        """A folder that is there already is used as it is."""
        try:
            os.mkdir(name, 0o700, dir_fd=folder)
        except FileExistsError:
            self._push(name, entry if self._archive else None)
        else:
            self._push(name, entry)

    # -- the rest -----------------------------------------------------------------------------------------------------------
    def _file(self, entry: Entry, name: bytes, folder: int, reader: EntryReader) -> None:
        temporary = _temporary()
        try:
            descriptor, unnamed = _new_file(temporary, folder)
            try:
                for piece in reader.data():
                    while piece:
                        piece = piece[os.write(descriptor, piece) :]  # noqa: PLW2901 - what is left of it
                self._dress(descriptor, entry)
                if unnamed:
                    os.link(f"/proc/self/fd/{descriptor}", temporary, dst_dir_fd=folder)
            finally:
                os.close(descriptor)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
            raise
        self._report.bytes += entry.size

    def _link(self, entry: Entry, name: bytes, folder: int) -> None:
        """A link may point anywhere: it is never followed here."""
        temporary = _temporary()
        os.symlink(entry.target, temporary, dir_fd=folder)
        self._dress_unopened(temporary, folder, entry)
        self._replace(temporary, name, folder)

    def _fifo(self, entry: Entry, name: bytes, folder: int) -> None:
        temporary = _temporary()
        os.mkfifo(temporary, 0o600, dir_fd=folder)
        self._dress_unopened(temporary, folder, entry)
        os.chmod(temporary, self._mode(entry), dir_fd=folder)
        self._replace(temporary, name, folder)

    def _hard_link(self, entry: Entry, name: bytes, folder: int) -> None:
        source = self._local(entry.target)
        if len(source) < 1:
            raise GuestError(f"refused a link to a folder: '{clean(entry.path)}'", code="unsafe_entry")
        temporary = _temporary()
        with contextlib.ExitStack() as opened:
            at = self._stack[0].descriptor
            for step in source[:-1]:
                at = os.open(step, _FOLDER_FLAGS, dir_fd=at)
                opened.callback(os.close, at)
            if not stat.S_ISREG(os.stat(source[-1], dir_fd=at, follow_symlinks=False).st_mode):
                raise GuestError(f"refused a link to what is no file: '{clean(entry.path)}'", code="unsafe_entry")
            os.link(source[-1], temporary, src_dir_fd=at, dst_dir_fd=folder, follow_symlinks=False)
        self._replace(temporary, name, folder)

    def _replace(self, temporary: bytes, name: bytes, folder: int) -> None:
        try:
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            # Renaming over another name of the same file does nothing, and leaves this one.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)

    def _dress(self, descriptor: int, entry: Entry) -> None:
        """Owner, mode and time, in this order: a change of owner clears special bits, and both change no time we set."""
        if self._archive and os.geteuid() == 0:
            os.fchown(descriptor, _user(entry), _group(entry))
        os.fchmod(descriptor, self._mode(entry))
        os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))

    def _dress_unopened(self, name: bytes, folder: int, entry: Entry) -> None:
        """Owner and time of what cannot be opened, by the random name that only we know."""
        if self._archive and os.geteuid() == 0:
            os.chown(name, _user(entry), _group(entry), dir_fd=folder, follow_symlinks=False)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=folder, follow_symlinks=False)

    def _mode(self, entry: Entry) -> int:
        return entry.mode & (0o7777 if self._archive else 0o777)

    def _explained(self, cause: OSError, names: list[bytes]) -> Exception:
        from pathlib import Path

        from insula.host.files import explain_os_error

        where = f"{self._base}/{clean(b'/'.join(names))}"
        explained = explain_os_error(cause, Path(where))
        if isinstance(explained, InsulaError):
            return explained
        if cause.errno in (errno.ELOOP, errno.ENOTDIR):
            return GuestError(
                f"refused to write through a link or a file: {where}", code="unsafe_entry", hint="copy into an empty folder"
            )
        return UsageError(f"cannot write {where}: {os.strerror(cause.errno or 0).lower()}", code="cannot_write")


def _new_file(temporary: bytes, folder: int) -> tuple[int, bool]:
    """A descriptor to write to, and whether the file has no name yet: one that goes with us when we are killed.

    Where the file system knows no such files it is named ``temporary``.
    """
    try:
        return os.open(b".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=folder), True
    except OSError as cause:
        if cause.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):  # open(2): the file system or kernel cannot
            raise
        return os.open(temporary, _NEW_FLAGS, 0o600, dir_fd=folder), False


def _temporary() -> bytes:
    return b".insula-" + os.urandom(8).hex().encode()


def _user(entry: Entry) -> int:
    """The owner by name where this computer knows it, else by number."""
    import pwd

    if entry.uname:
        with contextlib.suppress(KeyError, ValueError):
            return pwd.getpwnam(entry.uname).pw_uid
    return _checked_id(entry.uid, entry)


def _group(entry: Entry) -> int:
    import grp

    if entry.gname:
        with contextlib.suppress(KeyError, ValueError):
            return grp.getgrnam(entry.gname).gr_gid
    return _checked_id(entry.gid, entry)


def _checked_id(number: int, entry: Entry) -> int:
    if number > _ID_MAX:
        raise GuestError(f"an impossible owner: '{clean(entry.path)}'", code="unsafe_entry")
    return number
