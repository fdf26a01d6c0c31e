"""Kinds of values that options take. Kept apart because `exec` needs some and must start at once."""

from __future__ import annotations

from typing import Any

import click

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
