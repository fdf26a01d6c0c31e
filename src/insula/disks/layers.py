"""Layers: immutable parts of disks, shared by hard links, so that the kernel counts who uses them."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from insula.errors import DamagedRecord
from insula.host.files import explain_os_error, fsync, fsync_folder
from insula.store import names

_FICLONE: Final = 0x40049409  # linux/fs.h: share all blocks of another file, where the file system can


def link_layer(source: Path, target: Path) -> None:
    """Make ``target`` the same immutable file as ``source``; on return that is on the disk.

    A copy is made only where a link cannot be: on another file system, or when the file has as many links as it can have.
    Raises FileExistsError, DamagedRecord (``layer_missing``), HostLacks (``no_space``).
    """
    link_layers({target: source})


def link_layers(sources: Mapping[Path, Path]) -> None:
    """As `link_layer`, for several: the files they are to be the same as, by target. Each folder is made sure of once."""
    for target, source in sources.items():
        _link(source, target)
    for folder in {target.parent for target in sources}:
        fsync_folder(folder)


def _link(source: Path, target: Path) -> None:
    try:
        if not stat.S_ISREG(os.lstat(source).st_mode):
            raise DamagedRecord(f"the layer {source} is not a file", code="layer_missing", hint=_way_back(source))
        os.link(source, target, follow_symlinks=False)
    except FileNotFoundError as cause:
        raise DamagedRecord(f"the layer {source} is missing", code="layer_missing", hint=_way_back(source)) from cause
    except OSError as cause:
        if cause.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM):
            raise explain_os_error(cause, target) from cause
        _copy(source, target)


def copy_layer(source: Path, target: Path) -> None:
    """Make ``target`` an immutable file of its own with the content of ``source``; on return that is on the disk.

    Raises FileExistsError, HostLacks (``no_space``).
    """
    _copy(source, target)
    fsync_folder(target.parent)


def _copy(source: Path, target: Path) -> None:
    import fcntl

    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as writer, source.open("rb") as reader:
            try:
                fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
            except OSError:
                shutil.copyfileobj(reader, writer, 1 << 20)
            writer.flush()
            os.fchmod(writer.fileno(), names.LAYER_MODE)
            fsync(writer.fileno())
    except BaseException as cause:
        with contextlib.suppress(FileNotFoundError):
            target.unlink()
        if isinstance(cause, OSError):
            raise explain_os_error(cause, target) from cause
        raise


def require_layers(folder: Path, paths: list[str]) -> None:
    """Raises DamagedRecord (``layer_missing``) unless all ``paths`` in ``folder`` are regular files; links are not followed."""
    for path in paths:
        try:
            regular = stat.S_ISREG(os.stat(folder / path, follow_symlinks=False).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            regular = False
        if not regular:
            raise DamagedRecord(f"{folder / path} is missing", code="layer_missing", hint=_way_back(folder / path))


def _way_back(lost: Path) -> str:
    """What helps who misses the file ``lost``. Whoever has a layer of the same name has the same file, which `start` checks."""
    if lost.parent.name == names.LAYERS:
        digest, _, part = lost.name.partition("-")
        machines = lost.parents[2]
        twins = [*machines.parent.glob(f"images/{digest}*/{part}"), *machines.glob(f"*/{names.LAYERS}/{lost.name}")]
        if twin := next((each for each in twins if each.is_file() and not each.is_symlink()), None):
            return f"the same file is still here, so: ln -f {shlex.quote(str(twin))} {shlex.quote(str(lost))}"
    if lost.parents[1].name == "images":
        return "build the image anew: insula image build"
    return f"nothing here has it any more: bring it back from a backup, or: insula delete --force {lost.parents[1].name}"
