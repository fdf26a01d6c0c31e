"""Copies files and folders into and out of a guest, as `cp -r` and `docker cp` would.

A destination that is a folder gets the sources inside it; any other is the new name of a single source. `folder/.` means
the folder's contents. Paths in the guest that do not begin with a slash begin at its root folder.

    copy_in   = Packer (this computer)   → put_entries (guest)
    copy_out  = get_entries (guest)      → unpack (this computer)

The halves are joined by nothing but a stream of bytes, so that a request never needs a path of the caller's computer.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Protocol

from insula.errors import GuestError, InsulaError, UsageError
from insula.guest.entries import FILE, FOLDER, batched, rerooted
from insula.guest.link import Link
from insula.guest.pack import CONTENTS, Packer
from insula.guest.unpack import SLASH, Copied, unpack
from insula.model.text import clean

_PATIENCE = 30.0


class Meter(Protocol):
    """Who is told how far a copy is, in bytes of its stream."""

    def expect(self, total: int) -> None:
        """About ``total`` bytes are to come; not called when that is not known before."""

    def __call__(self, count: int) -> None:
        """``count`` more have passed."""


def copy_in(
    link: Link,
    sources: Sequence[str | os.PathLike[str]],
    guest_path: str | bytes,
    *,
    archive: bool = False,
    meter: Meter | None = None,
) -> list[str]:
    """Copy files and folders of this computer to ``guest_path``; returns warnings. Raises as `Packer` and `put_entries`."""
    packer = Packer(sources, archive=archive)
    if meter is not None and all(os.path.isfile(source) for source in sources):
        meter.expect(sum(os.path.getsize(source) for source in sources))
    put_entries(link, guest_path, _metered(packer, meter) if meter else packer, packer.names)
    return packer.warnings


def copy_out(
    link: Link,
    guest_paths: Sequence[str | bytes],
    local_path: str | os.PathLike[str],
    *,
    archive: bool = False,
    meter: Meter | None = None,
) -> Copied:
    """Copy files and folders of the guest to ``local_path``. Raises as `get_entries` and `unpack`."""
    entries = get_entries(link, guest_paths)
    if meter is not None and len(guest_paths) == 1:
        _expect(link, guest_paths[0], meter)
    try:
        return unpack(_metered(entries, meter) if meter else entries, local_path, guest_roots(guest_paths), archive=archive)
    finally:
        entries.close()


def _expect(link: Link, guest_path: str | bytes, meter: Meter) -> None:
    path = _absolute(guest_path)
    with contextlib.suppress(GuestError):  # it is not there, or is no file: the copy itself tells
        answer = link.call("stat", path=path, timeout=_PATIENCE, subject=clean(path))
        if answer.text("kind") == FILE:
            meter.expect(answer.number("size"))


def _metered(chunks: Iterable[bytes | memoryview], meter: Meter) -> Iterator[bytes | memoryview]:
    for chunk in chunks:
        meter(len(chunk))
        yield chunk


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
def get_entries(link: Link, guest_paths: Sequence[str | bytes]) -> Generator[bytes | memoryview, None, None]:
    """Yield the stream of entries of these files and folders. Closing the generator early gives the request up.

    Each chunk holds good until the next one is asked for.

    Raises GuestError (``no_such_file``, ``permission_denied``, …) in place of an end that the guest could not reach.
    """
    paths = [_split_contents(path)[0] for path in guest_paths]
    channel = link.open("get", path=paths)
    try:
        yield from channel.pieces()
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
