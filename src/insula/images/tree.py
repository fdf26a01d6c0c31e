"""The digest of a file tree: equal for equal trees, whatever host, user or file system they were made on.

Fed by an archive of the tree (GNU tar's posix form). Per path, in byte order: kind, mode, owner and group as numbers, time in
whole seconds, size and sha256 of the content or the link's target or the device's numbers, and extended attributes.
"""

from __future__ import annotations

import hashlib
import tarfile
from typing import BinaryIO, Final

import msgspec

# Everything a tree consists of; times, names and attributes as the file system holds them.
TAR_OF_TREE: Final = (
    *("tar", "--create", "--file=-", "--format=posix", "--sort=name", "--numeric-owner", "--no-acls", "--no-selinux"),
    *("--xattrs", "--xattrs-include=*", "--pax-option=delete=atime,delete=ctime"),
)

_KINDS: Final = {
    tarfile.REGTYPE: b"f",
    tarfile.AREGTYPE: b"f",
    tarfile.LNKTYPE: b"h",
    tarfile.SYMTYPE: b"l",
    tarfile.CHRTYPE: b"c",
    tarfile.BLKTYPE: b"b",
    tarfile.DIRTYPE: b"d",
    tarfile.FIFOTYPE: b"p",
}
_XATTR: Final = "SCHILY.xattr."
_CHUNK: Final = 1 << 20


class Tree(msgspec.Struct):
    """What was seen of a tree. ``lines`` maps a path to its part of the digest; ``contents`` holds the files asked for."""

    lines: dict[bytes, bytes] = msgspec.field(default_factory=dict)
    contents: dict[str, bytes] = msgspec.field(default_factory=dict)
    bytes: int = 0

    def digest(self) -> str:
        """64 hex digits."""
        whole = hashlib.sha256()
        for path in sorted(self.lines):
            line = self.lines[path]
            whole.update(b"%d %s\0%d " % (len(path), path, len(line)))
            whole.update(line)
        return whole.hexdigest()


def read_tree(untrusted_stream: BinaryIO, keep: tuple[str, ...] = ()) -> Tree:
    """Read an archive to its end. Files whose path begins with one of ``keep`` are kept in memory.

    Raises tarfile.TarError when it is cut short.
    """
    tree = Tree()
    with tarfile.open(fileobj=untrusted_stream, mode="r|", encoding="utf-8", errors="surrogateescape") as archive:
        for member in archive:
            path = _path(member.name)
            content, digest = b"", b""
            if member.isreg():
                wanted = path.startswith(keep) if keep else False
                digest, content = _hash(archive, member, wanted)
                tree.bytes += member.size
                if wanted:
                    tree.contents[path] = content
            tree.lines[path.encode(errors="surrogateescape")] = _line(member, digest)
    while untrusted_stream.read(_CHUNK):
        pass  # tar pads its last record; a writer that is not read to the end would die of SIGPIPE
    return tree


def _path(name: str) -> str:
    return name.removeprefix(".").strip("/")


def _hash(archive: tarfile.TarFile, member: tarfile.TarInfo, wanted: bool) -> tuple[bytes, bytes]:
    stream = archive.extractfile(member)
    assert stream is not None
    digest, parts = hashlib.sha256(), []
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
        if wanted:
            parts.append(chunk)
    return digest.hexdigest().encode(), b"".join(parts)


def _line(member: tarfile.TarInfo, content: bytes) -> bytes:
    kind = _KINDS.get(member.type, b"?")
    target = _path(member.linkname) if member.islnk() else member.linkname
    device = b"%d:%d" % (member.devmajor, member.devminor) if member.ischr() or member.isblk() else b""
    words = [
        kind,
        b"%o" % (member.mode & 0o7777),
        b"%d:%d" % (member.uid, member.gid),
        b"%d" % int(float(member.mtime)),
        b"%d" % (member.size if member.isreg() else 0),
        content,
        target.encode(errors="surrogateescape") if member.issym() or member.islnk() else b"",
        device,
    ]
    attributes = sorted((key.removeprefix(_XATTR), value) for key, value in member.pax_headers.items() if key.startswith(_XATTR))
    words += [f"{name}={value}".encode(errors="surrogateescape") for name, value in attributes]
    return b"\0".join(words)
