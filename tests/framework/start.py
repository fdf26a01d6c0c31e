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
    status = int(pytest.main(["-c", str(ROOT / "pyproject.toml"), "-o", f"cache_dir={cache_folder('pytest')}", *words]))
    if any(leaks.threads()):
        # It was reported as left behind; waiting for it at the interpreter's end could take for ever.
        sys.stdout.flush()
        os._exit(status)
    return status


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

    purposes = {packages.Purpose.MACHINE, packages.Purpose.IMAGE, packages.Purpose.TESTS}
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
