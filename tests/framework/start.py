"""``./test``: see that this system has what the tests need, then hand over to pytest.

Run by its path, in isolated mode, by the environment that ``./test`` made.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_MOST = 4  # processes: a guest may have 1 GiB, and the machine is not the tests' alone
_ALONE = ("-n", "-k", "-m", "-x", "-s", "--pdb", "--co")  # options of who looks at some of them


def main(words: list[str]) -> int:
    sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
    import pytest

    from tests.framework import leaks
    from tests.framework.caches import cache_folder
    from tests.framework.consent import asker

    consent = "--yes" in words or bool(os.environ.get("INSULA_YES"))
    words = [_absolute(word) for word in words if word != "--yes"]
    if status := _ensure_packages(asker(consent), full="--full" in words):
        return status
    os.chdir(ROOT)
    _let_children_hear()
    # Processes that pytest starts are not in isolated mode as this one is, but what the caller set for its own Python is none
    # of theirs either (PYTHONDONTWRITEBYTECODE, PYTHONOPTIMIZE…); nor may they write into the clone.
    for name in [name for name in os.environ if name.startswith("PYTHON")]:
        del os.environ[name]
    os.environ |= {"PYTHONNOUSERSITE": "1", "PYTHONPYCACHEPREFIX": sys.pycache_prefix or str(cache_folder("pycache"))}
    known = ["-c", str(ROOT / "pyproject.toml"), "-o", f"cache_dir={cache_folder('pytest')}"]
    status = int(pytest.main([*known, *_side_by_side(words), *words]))
    if any(leaks.threads()):
        # It was reported as left behind; waiting for it at the interpreter's end could take for ever.
        sys.stdout.flush()
        os._exit(status)
    return status


def _side_by_side(words: list[str]) -> list[str]:
    """What to tell pytest so that several processes do the tests: most tests wait for a guest with one CPU, and one process alone
    would leave every other core idle. Nothing when certain tests are asked for, or it says how in ``words``."""
    count = min(len(os.sched_getaffinity(0)), _MOST)
    if count < 2 or any(not word.startswith("-") or word.startswith(_ALONE) for word in words):
        return []
    # Files in their order: those with guests come first, and the short ones at the end fill what is left.
    return ["-n", str(count), "--dist", "loadfile", "--no-loadscope-reorder"]


def _let_children_hear() -> None:
    """A shell that starts us behind (`./test &`, nohup) has us ignore signals, and so would all commands under test, which are
    sent these. We go on ignoring them by a handler, which no program that we start inherits (signal(7))."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def _absolute(word: str) -> str:
    """A test may be named from any folder: pytest itself is always run in the clone's."""
    path, *rest = word.split("::")
    return "::".join([os.path.abspath(path), *rest]) if not word.startswith("-") and os.path.exists(path) else word


def _ensure_packages(confirm: Callable[[str], bool] | None, *, full: bool) -> int:
    from insula.errors import InsulaError
    from insula.host import packages

    purposes = {packages.Purpose.MACHINE, packages.Purpose.JAIL, packages.Purpose.IMAGE, packages.Purpose.TESTS}
    if full:
        purposes.add(packages.Purpose.FULL_TESTS)
    try:
        packages.ensure(purposes, confirm=confirm, progress=lambda line: print(f"test: {line}", file=sys.stderr))
    except InsulaError as error:
        print(f"test: {error.message}", file=sys.stderr)
        print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
