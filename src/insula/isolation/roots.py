"""Jail roots: one read-only tree per QEMU build and keeper, holding what they need and nothing else.

A root is a cache: public files of this host's packages and our keeper, made once, found by a digest of what it was made
from, never changed. It may be deleted while no machine runs. It lies outside any private folder, because the ids of
jails (uids.py) must be able to walk there: ``/var/cache/insula/jails`` for root, ``~/.cache/insula/jails`` for a user.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from insula.errors import HostLacks
from insula.host.cache import cache_folder, mark_used, prune
from insula.host.digest import digest_of
from insula.host.files import explain_os_error, remove_tree
from insula.host.process import run
from insula.store import names
from insula.store.locks import folder_lock

KEEPER_INSIDE: Final = "/usr/bin/insula-keeper"
PROBE_INSIDE: Final = "/usr/bin/insula-probe"
_LAYOUT: Final = "3"
_EMPTY_FILES: Final = ("dev/null", "dev/userfaultfd", "boot/kernel", "boot/initrd", "boot/memory")
_ELF: Final = b"\x7fELF"
_LDD_LINE: Final = re.compile(r"^\s+(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)


class RootPlan(msgspec.Struct, frozen=True):
    """What goes in: programs and modules (with the libraries they load), whole folders, the keeper at its place, and ``probe`` if
    the jail is to be tried."""

    programs: tuple[Path, ...]
    folders: tuple[Path, ...]
    keeper: Path
    probe: Path | None = None


def roots_folder() -> Path:
    if os.geteuid() == 0:
        return Path("/var/cache/insula/jails")
    return cache_folder() / "jails"


def jail_root(plan: RootPlan, folder: Path | None = None) -> Path:
    """The root for ``plan``, made now if it is not there. Raises HostLacks (``no_space``) or ChildFailed."""
    folder = folder or roots_folder()
    root = folder / _digest(plan)
    mark_used(root)
    if not root.is_dir():
        try:
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            with folder_lock(folder):
                _sweep(folder)
                if not root.is_dir():  # nobody else made it while we waited
                    _build(plan, root)
                prune(folder, "[0-9a-f]*", current=root)
        except OSError as cause:
            raise explain_os_error(cause, root) from cause
    return root


def _sweep(folder: Path) -> None:
    """Remove what was not finished. Who builds holds the folder's lock, which is ours now: so its maker is dead."""
    for path in folder.glob(f"{names.BUILDING_PREFIX}*"):
        remove_tree(path)


def _digest(plan: RootPlan) -> str:
    """Of every source's path, size and time; the loader's cache stands for the libraries."""
    lines = [_LAYOUT]
    for path in (Path("/etc/ld.so.cache"), *plan.programs, *_inside(plan.folders), *_own(plan)):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            lines.append(f"{path} {status.st_size} {status.st_mtime_ns}\n")
    return digest_of("".join(lines).encode())[:32]


def _own(plan: RootPlan) -> dict[Path, str]:
    """What is ours of it, and its place."""
    return {plan.keeper: KEEPER_INSIDE} | ({} if plan.probe is None else {plan.probe: PROBE_INSIDE})


def _inside(folders: Sequence[Path]) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


def _build(plan: RootPlan, root: Path) -> None:
    staged = root.with_name(f"{names.BUILDING_PREFIX}{os.urandom(8).hex()}")
    try:
        for path in [*plan.programs, *_libraries(plan.programs), *_inside(plan.folders)]:
            _place(path, staged / path.relative_to("/"))
        for path, inside in _own(plan).items():
            _place(path, staged / inside.lstrip("/"))
        for name in _EMPTY_FILES:
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            (staged / name).touch()
        for path in (staged, *staged.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
        # A root that is there is believed: none may appear after a power cut whose files never reached the disk.
        for path in staged.rglob("*"):
            if path.is_file():
                _fsync(path)
        with contextlib.suppress(FileExistsError, OSError):
            staged.rename(root)
    finally:
        remove_tree(staged)
    if not root.is_dir():
        raise HostLacks(f"cannot make the jail root {root}", code="no_jail_root")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _libraries(programs: Iterable[Path]) -> list[Path]:
    """The shared libraries and the loader of ``programs``, as the host's own loader finds them."""
    dynamic = [str(path) for path in programs if _is_elf(path)]
    listing = run(["ldd", *dynamic], check=False).text
    return sorted({Path(match) for match in _LDD_LINE.findall(listing)})


def _is_elf(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) == _ELF


def _place(source: Path, target: Path) -> None:
    """The content of ``source`` at ``target``: the same file where the kernel lets us link it, else a copy."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    real = source.resolve()
    try:
        os.link(real, target)
    except OSError:
        shutil.copy(real, target)
        target.chmod(0o555 if os.access(real, os.X_OK) else 0o444)
