"""Kinds of values that options and arguments take. Kept apart because `exec` needs some and must start at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_LONGEST = 1_000_000.0  # eleven days; what waits longer waits for something that does not come


class Seconds(click.ParamType[float]):
    """A time to wait, in seconds. ``nan`` and ``inf`` are numbers to Python, but no times."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            self.fail(f"'{value}' is not a number of seconds", param, ctx)
        if not 0 <= seconds <= _LONGEST:
            self.fail(f"{value} seconds cannot be waited for; 0 to {_LONGEST:.0f} can", param, ctx)
        return seconds


def later(what: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """The function ``what`` of `complete.py`, loaded when Tab is pressed and not before."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from insula.cli import complete as offers

        items: list[CompletionItem] = getattr(offers, what)(context, parameter, incomplete)
        return items

    return complete
