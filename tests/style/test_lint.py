"""Linters, types and layers, as tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.framework.caches import cache_folder
from tests.framework.project import ROOT, shell_files

SOURCES = [name for name in ("src", "tests", "bench", "packaging") if (ROOT / name).exists()]


def _clean(*words: str, **environment: str) -> None:
    """Run a checker; what it complains about is the test's failure."""
    __tracebackhide__ = True
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=os.environ | environment, check=False)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(words[:6])}\n{done.stdout[-12000:]}{done.stderr[-4000:]}", pytrace=False)


def test_ruff_has_nothing_to_say() -> None:
    _clean(sys.executable, "-m", "ruff", "check", "--quiet", "--cache-dir", str(cache_folder("ruff")), *SOURCES)


def test_code_is_formatted() -> None:
    _clean(
        sys.executable, "-m", "ruff", "format", "--check", "--quiet", "--diff", "--cache-dir", str(cache_folder("ruff")), *SOURCES
    )


@pytest.mark.limit(600)
@pytest.mark.parametrize("folder", [name for name in ("src", "tests", "bench") if (ROOT / name).exists()])
def test_types_hold(folder: str) -> None:
    _clean(sys.executable, "-m", "mypy", "--cache-dir", str(cache_folder("mypy")), folder)


@pytest.mark.limit(120)
def test_imports_point_down() -> None:
    # Without its cache, which does not notice that a module it once missed has come.
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_logo=True, no_cache=True))"
    _clean(sys.executable, "-c", program)


@pytest.mark.parametrize("path", shell_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_shell_scripts_are_sound(path: Path) -> None:
    first = path.read_bytes().splitlines()[0]
    _clean("bash" if b"bash" in first else "sh", "-n", str(path))
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    _clean("shellcheck", "--external-sources", str(path))


def test_help_is_quick_to_import() -> None:
    """What ``insula --help``, ``list`` and ``exec`` load before they do anything must stay small."""
    heavy = ["asyncio", "qemu", "rich", "tarfile", "tomllib", "sqlite3", "http", "ssl", "email", "unittest"]
    program = f"import sys, insula.cli.main; print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_machine_starts_without_openssl() -> None:
    """It takes as long to load as a quarter of all else that Python loads before QEMU is started."""
    needed = "insula.operations.run, insula.operations.start, insula.engines.qemu.launch, insula.networks.fabric"
    heavy = ["hashlib", "secrets", "ssl", "tempfile"]
    program = f"import sys, {needed}; print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
