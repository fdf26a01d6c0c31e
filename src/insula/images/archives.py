"""Archives made from values: the cpio a Linux kernel unpacks as its first root, and the tar a room unpacks into a tree.

Equal entries give equal bytes. Format of cpio ("newc"): Documentation/driver-api/early-userspace/buffer-format.rst in the
kernel's sources.
"""

from __future__ import annotations

import io
import stat
import tarfile
from collections.abc import Iterable

import msgspec


class Entry(msgspec.Struct, frozen=True):
    """One file: ``path`` without a leading slash, ``mode`` with its type bits; a link's ``content`` is its target."""

    path: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)
    uid: int = 0
    gid: int = 0


def folder(path: str, mode: int = 0o755) -> Entry:
    return Entry(path, stat.S_IFDIR | mode)


def regular(path: str, content: bytes, mode: int = 0o644) -> Entry:
    return Entry(path, stat.S_IFREG | mode, content)


def link(path: str, target: str) -> Entry:
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int, mode: int = 0o600) -> Entry:
    return Entry(path, stat.S_IFCHR | mode, device=(major, minor))


def write_cpio(entries: Iterable[Entry]) -> bytes:
    """A cpio of ``entries`` in their order (a folder must come before what is in it). Times are 0."""
    parts = [_member(number, entry) for number, entry in enumerate(entries, start=1)]
    parts.append(_member(0, Entry("TRAILER!!!", 0)))
    archive = b"".join(parts)
    return archive + bytes(-len(archive) % 512)


def _member(number: int, entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, entry.uid, entry.gid, links, 0, len(entry.content), 0, 0, *entry.device, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    padded_name = name + bytes(-(len(header) + len(name)) % 4)
    return header + padded_name + entry.content + bytes(-len(entry.content) % 4)


_TAR_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
}


def write_tar(entries: Iterable[Entry], mtime: int) -> bytes:
    """A tar of ``entries`` in their order, all of the same time (seconds since 1970)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            member = tarfile.TarInfo(entry.path)
            member.type = _TAR_TYPES[stat.S_IFMT(entry.mode)]
            member.mode = stat.S_IMODE(entry.mode)
            member.uid, member.gid, member.mtime = entry.uid, entry.gid, mtime
            if stat.S_ISLNK(entry.mode):
                member.linkname = entry.content.decode()
            elif stat.S_ISREG(entry.mode):
                member.size = len(entry.content)
            archive.addfile(member, io.BytesIO(entry.content) if member.isreg() else None)
    return buffer.getvalue()


def with_parents(entries: Iterable[Entry]) -> list[Entry]:
    """``entries`` with every missing folder put before what is in it."""
    known: set[str] = set()
    whole: list[Entry] = []
    for entry in entries:
        parts = entry.path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            parent = "/".join(parts[:depth])
            if parent not in known:
                known.add(parent)
                whole.append(folder(parent))
        if not (stat.S_ISDIR(entry.mode) and entry.path in known):
            whole.append(entry)
        known.add(entry.path)
    return whole
