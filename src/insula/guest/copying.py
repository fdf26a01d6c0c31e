"""Copies files and folders into and out of a guest, as `cp -r` and `docker cp` would.

A destination that is a folder gets the sources inside it; any other is the new name of a single source. `folder/.` means
the folder's contents. Paths in the guest that do not begin with a slash begin at its root folder.

    copy_in   = Packer (this computer)   → put_entries (guest)
    copy_out  = get_entries (guest)      → unpack (this computer)

The halves are joined by nothing but a stream of bytes, so that a request never needs a path of the caller's computer.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Generator, Iterable, Sequence

from insula.errors import GuestError, InsulaError, UsageError
from insula.guest import wire
from insula.guest.entries import FOLDER, batched, rerooted
from insula.guest.link import Link
from insula.guest.pack import CONTENTS, Packer
from insula.guest.unpack import SLASH, Copied, unpack
from insula.model.text import clean

_PATIENCE = 30.0


def copy_in(
    link: Link, sources: Sequence[str | os.PathLike[str]], guest_path: str | bytes, *, archive: bool = False
) -> list[str]:
    """Copy files and folders of this computer to ``guest_path``; returns warnings. Raises as `Packer` and `put_entries`."""
    packer = Packer(sources, archive=archive)
    put_entries(link, guest_path, packer, packer.names)
    return packer.warnings


def copy_out(
    link: Link, guest_paths: Sequence[str | bytes], local_path: str | os.PathLike[str], *, archive: bool = False
) -> Copied:
    """Copy files and folders of the guest to ``local_path``. Raises as `get_entries` and `unpack`."""
    entries = get_entries(link, guest_paths)
    try:
        return unpack(entries, local_path, guest_roots(guest_paths), archive=archive)
    finally:
        entries.close()


# -- into the guest --------------------------------------------------------------------------------------------------------
def put_entries(link: Link, guest_path: str | bytes, chunks: Iterable[bytes | memoryview], names: Sequence[bytes]) -> None:
    """Write a stream of entries, whose roots have these ``names``, to ``guest_path``.

    Raises GuestError (``no_such_folder``, ``not_a_folder``, ``permission_denied``, ``guest_disk_full``, …), and what
    ``chunks`` raise.
    """
    placement = _place(link, _absolute(guest_path), names)
    if placement.root is not None:
        chunks = batched(rerooted(chunks, placement.root, unless_folder=placement.unless_folder))
    channel = link.open("put", path=placement.folder)
    try:
        for chunk in chunks:
            if not channel.write(chunk):
                break
    except BaseException:
        channel.close()
        raise
    channel.finish(subject=clean(placement.folder), folders={b"": placement.folder})


class _Placement:
    """``folder`` of the guest is written into; ``root``, when not None, is the new name of the stream's root."""

    __slots__ = ("folder", "root", "unless_folder")

    def __init__(self, folder: bytes, root: bytes | None = None, unless_folder: InsulaError | None = None) -> None:
        self.folder = folder
        self.root = root
        self.unless_folder = unless_folder


def _place(link: Link, path: bytes, names: Sequence[bytes]) -> _Placement:
    contents = CONTENTS in names
    if contents and len(names) > 1:
        raise UsageError("a folder's contents cannot be copied together with other sources", code="usage")
    if _is_folder(link, path):
        not_a_folder = UsageError("the source is not a folder", code="not_a_folder")
        return _Placement(path, b"", not_a_folder) if contents else _Placement(path)
    shown = clean(path)
    if len(names) != 1:
        raise GuestError(
            f"not a folder in the guest: {shown}", code="not_a_folder", hint="several sources can only be copied into a folder"
        )
    parent, name = posixpath.split(path.rstrip(b"/"))
    if name in (b"", b".", b"..") or not _is_folder(link, parent):
        raise GuestError(f"no such folder in the guest: {clean(parent)}", code="no_such_folder")
    missing = GuestError(f"no such folder in the guest: {shown}", code="no_such_folder", hint=SLASH)
    return _Placement(parent, name, missing if path.endswith(b"/") else None)


def _is_folder(link: Link, path: bytes) -> bool:
    """Whether ``path`` is a folder of the guest, or a link to one: that is what `/.` at the end asks."""
    try:
        answer = link.call("stat", path=path.rstrip(b"/") + b"/.", timeout=_PATIENCE, subject=clean(path))
    except GuestError as error:
        if error.code in ("no_such_file", "not_a_folder"):
            return False
        raise
    return answer.text("kind") == FOLDER


def _absolute(guest_path: str | bytes) -> bytes:
    path = os.fsencode(guest_path)
    if not path:
        raise UsageError("the path in the guest is empty", code="usage")
    return path if path.startswith(b"/") else b"/" + path


# -- out of the guest ---------------------------------------------------------------------------------------------------------
def get_entries(link: Link, guest_paths: Sequence[str | bytes]) -> Generator[bytes, None, None]:
    """Yield the stream of entries of these files and folders. Closing the generator early gives the request up.

    Raises GuestError (``no_such_file``, ``permission_denied``, …) in place of an end that the guest could not reach.
    """
    paths = [_split_contents(path)[0] for path in guest_paths]
    channel = link.open("get", path=paths)
    try:
        channel.widen(wire.STDOUT)
        for stream, data in channel:
            if stream == wire.STDOUT and data:
                yield data
    except BaseException:
        channel.close()
        raise
    channel.finish(subject=clean(paths[0]), folders={posixpath.basename(path): posixpath.dirname(path) for path in paths})


def guest_roots(guest_paths: Sequence[str | bytes]) -> list[tuple[bytes, bool]]:
    """For each path of a guest the name its tree has in the stream, and whether only its contents are meant.

    Raises UsageError for a path that has no name.
    """
    return [_split_contents(path)[1:] for path in guest_paths]


def _split_contents(guest_path: str | bytes) -> tuple[bytes, bytes, bool]:
    path = _absolute(guest_path)
    whole = path.rstrip(b"/")
    contents = whole.endswith(b"/.")
    while whole.endswith((b"/.", b"/")):
        whole = whole.removesuffix(b".").rstrip(b"/")
    name = posixpath.basename(whole)
    if name in (b"", b".."):
        raise UsageError(f"cannot copy '{clean(path)}' as a whole", code="usage", hint="name the folders in it one by one")
    return whole, name, contents
