"""Finds the native parts (the agent for guests, the keeper for hosts), building them from our C sources when needed.

A wheel may carry them ready-made in ``insula/_native/bin/<arch>/``. Otherwise they are compiled once per content of their
sources, into ``~/.cache/insula/native-<digest>/<arch>/``: by any C compiler with a static libc for this computer's own
architecture, by zig or a Debian cross compiler for the others.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from insula.errors import ChildFailed, HostLacks
from insula.host.cache import cache_folder, mark_used, prune
from insula.host.digest import digest_of
from insula.host.files import remove_tree
from insula.host.process import find_program, run
from insula.model.architectures import ARCHITECTURES, debian_architecture

_PACKAGE = Path(__file__).resolve().parents[1]
_SHARED = "wire"  # the framing: compiled into every part

FLAGS = (
    *("-std=gnu11", "-D_GNU_SOURCE=", "-Wall", "-Wextra", "-Os", "-static", "-s"),
    *("-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections"),
)
_PATIENCE = 600.0  # seconds; zig's first build for an architecture builds a libc, too


def native_sources() -> Path:
    """The folder that holds ``agent/``, ``keeper/`` and ``wire/``: the clone's, or the package's own copy.

    Raises HostLacks (``native_sources_missing``) when the installation lacks both.
    """
    for folder in (_PACKAGE / "_native" / "src", _PACKAGE.parents[1] / "native"):
        if (folder / _SHARED / "wire.h").exists():
            return folder
    raise HostLacks("this installation of Insula lacks its C sources", code="native_sources_missing", hint="install Insula anew")


@functools.cache
def native_digest(part: str) -> str:
    """32 hex digits that change when a source of ``part`` (``agent`` or ``keeper``) changes, whatever compiler is used."""
    parts = [" ".join(FLAGS).encode()]
    sources = native_sources()
    for path in _files(part, "*"):
        content = path.read_bytes()
        parts += (f"\n{path.relative_to(sources)} {len(content)}\n".encode(), content)
    return digest_of(b"".join(parts))[:32]


def native_path(name: str, arch: str | None = None) -> Path:
    """The program ``insula-agent`` or ``insula-keeper`` for an architecture (default: this computer's), built if need be.

    Raises HostLacks (``no_compiler``) when nothing here can compile for that architecture, ChildFailed when the compiler
    refuses the sources.
    """
    arch = debian_architecture(arch or os.uname().machine)
    prebuilt = _PACKAGE / "_native" / "bin" / arch / name
    if prebuilt.exists():
        return prebuilt
    part = name.removeprefix("insula-")
    folder = cache_folder() / f"native-{native_digest(part)}"
    mark_used(folder)
    built = folder / arch / name
    if not built.exists():
        with _building(built.parent):
            if not built.exists():
                build(part, arch, built)
        prune(cache_folder(), "native-*", current=folder)
    return built


def build(part: str, arch: str, target: Path) -> None:
    """Compile ``part`` for ``arch`` into the file ``target``, which appears whole or not at all. Raises as native_path."""
    compiler = find_compiler(arch)
    temporary = target.with_name(f".{target.name}.{os.urandom(4).hex()}")
    stamp = f'-DINSULA_BUILD="{native_digest(part)[:12]}"'
    try:
        sources = _files(part, "*.c")
        run([*compiler, *FLAGS, stamp, f"-I{native_sources()}", "-o", temporary, *sources], timeout=_PATIENCE)
        temporary.chmod(0o755)
        with temporary.open("rb") as program:
            os.fsync(program.fileno())
        temporary.rename(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def find_compiler(arch: str) -> list[str]:
    """The first words of a command that compiles for ``arch``. Raises HostLacks (``no_compiler``)."""
    if arch == debian_architecture(os.uname().machine):
        for name in ("musl-gcc", "cc", "gcc"):
            if find_program(name):
                return [name]
        raise HostLacks("no C compiler is installed", code="no_compiler", hint="run: apt-get install musl-tools")
    cross = f"{ARCHITECTURES[arch][0]}-linux-gnu-gcc"
    if find_program(cross):
        return [cross]
    return [*zig(), "cc", "-target", f"{ARCHITECTURES[arch][1]}-linux-musl"]


def zig() -> list[str]:
    """The first words of a zig command: a compiler for all architectures, from PyPI.

    When it is not here, the version that ``native/zig.lock`` names by hash is fetched once into the cache (about 100 MB).
    Raises HostLacks (``no_compiler``) when it cannot be fetched.
    """
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang"]
    lock = native_sources() / "zig.lock"
    folder = cache_folder() / f"zig-{digest_of(lock.read_bytes())[:20]}"
    mark_used(folder)
    program = folder / "ziglang" / "zig"
    if not program.exists():
        with _building(folder):
            if not program.exists():
                _fetch_zig(lock, folder)
        prune(cache_folder(), "zig-*", current=folder)
    return [str(program)]


def _fetch_zig(lock: Path, folder: Path) -> None:
    """Unpacked beside, then renamed: a folder of that name is complete."""
    staging = folder / f".{os.urandom(4).hex()}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        run([*pip, "--no-deps", "--only-binary", ":all:", "--require-hashes", "--target", staging, "-r", lock], timeout=_PATIENCE)
        (staging / "ziglang").rename(folder / "ziglang")
    except ChildFailed as cause:
        raise HostLacks(
            "no compiler for other architectures is here, and zig could not be fetched",
            code="no_compiler",
            hint="check the network, or install Debian's cross compiler (gcc-ARCH-linux-gnu)",
        ) from cause
    finally:
        remove_tree(staging)


def _files(part: str, pattern: str) -> list[Path]:
    sources = native_sources()
    return sorted(path for folder in (part, _SHARED) for path in (sources / folder).glob(pattern) if path.is_file())


@contextlib.contextmanager
def _building(folder: Path) -> Iterator[None]:
    """Hold the lock of a build folder, so that two commands started at once compile once. What a killed one left goes."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.glob(".*"):
            if left.is_dir():
                remove_tree(left)
            elif left.name != ".lock":
                left.unlink(missing_ok=True)
        yield
