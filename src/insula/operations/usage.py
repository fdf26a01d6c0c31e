"""What holds the disk space: each machine, image and warm state, what of it is its own and what it shares with whom.

A layer is one file with a name in the folder of each who needs it; the kernel counts the names. So a file is somebody's own, and
deleting him frees it, when all its names are in his folder; it counts once in the total, whoever shares it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from insula.host.cache import cache_folder
from insula.isolation.roots import roots_folder
from insula.model.requests import ShowDiskUsage
from insula.model.status import DiskUsage, HolderUsage, SharedFile
from insula.operations.context import Context
from insula.operations.operation import Operation
from insula.store import names
from insula.store.machines import machine_folder

_BLOCK = 512  # bytes in st_blocks, see stat(2)


class _File(msgspec.Struct):
    """One file, whatever names it has: ``links`` counts those of each holder."""

    size: int
    names: int
    links: dict[str, int] = msgspec.field(default_factory=dict)


class _Name(msgspec.Struct, frozen=True):
    """One name of a file in the folder of ``holder``; ``part`` is what it is there."""

    holder: str
    path: str
    part: str
    file: _File


def usage(context: Context, request: ShowDiskUsage, operation: Operation) -> DiskUsage:
    """Usage of the machines named, or of all there is. Raises NotFound."""
    for name in request.names:
        machine_folder(context.home, name)
    operation.tell("look at all files")
    found = list(_walk(context))
    kinds = {holder: kind for holder, kind, _ in _holders(context)}
    files = {id(name.file): name.file for name in found}
    wanted = [f"machine {name}" for name in request.names] or sorted({name.holder for name in found}, key=_order)
    holders = [_sum(holder, kinds.get(holder, "other"), [name for name in found if name.holder == holder]) for holder in wanted]
    return DiskUsage(holders=holders, total=sum(file.size for file in files.values()))


def _order(holder: str) -> tuple[int, str]:
    kind = holder.partition(" ")[0]
    kinds = ("machine", "spare", "warm", "image", "host", "cache")
    return kinds.index(kind) if kind in kinds else len(kinds), holder


def _holders(context: Context) -> Iterator[tuple[str, str, Path]]:
    """Whom files belong to, as ``machine web``: title, kind and folder. What is half made or half deleted counts, too."""
    home = context.home
    for kind, parent in (("machine", home.machines), ("image", home.images), ("warm", home.warm), ("spare", home.spares)):
        with contextlib.suppress(FileNotFoundError), os.scandir(parent) as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                if entry.is_dir(follow_symlinks=False):
                    yield f"{kind} {entry.name}", kind, Path(entry.path)
    yield "host notes", "host", home.host
    yield "cache of jails", "cache", roots_folder()
    if cache_folder() != roots_folder().parent:
        yield "cache of programs", "cache", cache_folder()


def _walk(context: Context) -> Iterator[_Name]:
    files: dict[tuple[int, int], _File] = {}
    for holder, kind, folder in _holders(context):
        for path in _below(folder):
            with contextlib.suppress(OSError):
                seen = os.lstat(path)
                file = files.setdefault((seen.st_dev, seen.st_ino), _File(seen.st_blocks * _BLOCK, seen.st_nlink))
                file.links[holder] = file.links.get(holder, 0) + 1
                relative = os.path.relpath(path, folder)
                yield _Name(holder, relative, _part(kind, relative), file)


def _below(folder: Path) -> Iterator[str]:
    for place, _, found in os.walk(folder):
        for name in found:
            yield os.path.join(place, name)


def _part(kind: str, path: str) -> str:
    """What a file is to its holder; a snapshot's links to memory that another snapshot has, too, are memory all the same."""
    first = path.split("/", 1)[0]
    if first in (names.SNAPSHOTS, names.SUSPENDED, names.ORIGIN):
        return "memory"
    if first == names.DISKS:
        return "heads"
    return "layers" if first == names.LAYERS or kind == "image" else "rest"


def _sum(holder: str, kind: str, found: list[_Name]) -> HolderUsage:
    seen: set[int] = set()
    parts = {"heads": 0, "layers": 0, "memory": 0, "rest": 0}
    own, shared, shared_files = 0, 0, []
    for name in found:
        if id(name.file) in seen:
            continue
        seen.add(id(name.file))
        parts[name.part] += name.file.size
        if name.file.links[holder] == name.file.names:
            own += name.file.size
        else:
            shared += name.file.size
            others = sorted(other for other in name.file.links if other != holder)
            if sum(name.file.links.values()) < name.file.names:
                others.append("elsewhere")
            if kind != "cache":  # there it is this system's own programs
                shared_files.append(SharedFile(path=name.path, size=name.file.size, others=others))
    title = holder.partition(" ")[2]
    return HolderUsage(
        kind=kind, name=title, own=own, shared=shared, heads=parts["heads"], layers=parts["layers"], memory=parts["memory"],
        rest=parts["rest"], shared_files=shared_files,
    )  # fmt: skip
