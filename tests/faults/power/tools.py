"""A disk with what the doomed host needs to run Insula: this Python, its library, our packages, and QEMU's block layer.

All of it lies where it lies here, so a `chroot` into that disk finds it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec

from tests.framework.project import ROOT

_LEFT_OUT: Final = (
    "test",
    "idlelib",
    "tkinter",
    "turtledemo",
    "lib2to3",
    "ensurepip",
    "site-packages",
    "dist-packages",
    "config-*",
)
_LIBRARY: Final = re.compile(r"(/\S+) \(0x")
SOURCE: Final = "/insula"


def make_tools(
    folder: Path,
    programs: Iterable[str] = (),
    files: Iterable[str] = (),
    others: Mapping[str, Path] = MappingProxyType({}),
    size: int = 400 << 20,
) -> Path:
    """The image of an ext4 file system of ``size`` bytes, made in ``folder``. ``programs`` and ``files`` are put there, too, and
    ``others``, files and folders, at the places that are their keys."""
    tree = folder / "tools"
    tree.mkdir()
    for place in ("dev", "proc", "sys", "tmp", "home", "etc"):
        (tree / place).mkdir()
    (tree / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    paths = sysconfig.get_paths()
    for library in {paths["stdlib"], paths["platstdlib"]}:
        shutil.copytree(library, tree / library.lstrip("/"), symlinks=True, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    package = Path(msgspec.__file__).parent
    shutil.copytree(package, tree / SOURCE.lstrip("/") / "msgspec")
    shutil.copytree(ROOT / "src/insula", tree / SOURCE.lstrip("/") / "insula", ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("framework", "faults"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "tests" / part, tree / SOURCE.lstrip("/") / "tests" / part, ignore=ignored)
    for place, source in others.items():
        (tree / place).parent.mkdir(parents=True, exist_ok=True)
        copy = partial(shutil.copytree, symlinks=True) if source.is_dir() else shutil.copy2
        copy(source, tree / place)
    storage = shutil.which("qemu-storage-daemon")
    assert storage is not None
    programs = [python(), storage, *programs]
    _copy(tree, [*programs, *files])
    _copy(tree, _libraries([*programs, *map(str, tree.rglob("*.so"))]))
    return pack(tree, folder / "tools.raw", size)


def python() -> str:
    """The interpreter itself, not a link that a virtual environment has to it."""
    return os.path.realpath(sys.executable)


def pack(tree: Path, image: Path, size: int, *options: str) -> Path:
    """An ext4 file system of ``size`` bytes with what is in ``tree``."""
    with image.open("wb") as file:
        file.truncate(size)
    words = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(tree), *options, str(image), f"{size >> 10}k"]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
    return image


def _libraries(programs: Iterable[str]) -> set[str]:
    done = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False)
    return set(_LIBRARY.findall(done.stdout))


def _copy(tree: Path, files: Iterable[str]) -> None:
    for file in files:
        target = tree / file.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target)
