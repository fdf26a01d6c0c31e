"""Asking the person at the terminal whether packages may be installed."""

from __future__ import annotations

import sys
from collections.abc import Callable


def asker(consent: bool) -> Callable[[str], bool] | None:
    """A function that asks a yes-or-no question; None when there is nobody to ask."""
    if consent:
        return lambda _question: True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None

    def ask(question: str) -> bool:
        print(f"{question} [Y/n] ", end="", file=sys.stderr, flush=True)
        return not sys.stdin.readline().strip().lower().startswith("n")

    return ask
