"""Kinds of values that options and arguments take. Kept apart because `exec` needs some and must start at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from insula.errors import UsageError

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


class Setting(click.ParamType[str]):
    """``NAME=VALUE`` for the environment of a command."""

    name = "setting"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if not text.partition("=")[0] or "=" not in text:
            self.fail(f"'{text}' sets nothing; write NAME=VALUE", param, ctx)
        return text


def later(what: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """The function ``what`` of `complete.py`, loaded when Tab is pressed and not before."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from insula.cli import complete as offers

        items: list[CompletionItem] = getattr(offers, what)(context, parameter, incomplete)
        return items

    return complete


class _Parsed(click.ParamType[Any]):
    """A value that a function of the model reads; what it cannot be is wrong usage."""

    def __init__(self, name: str, parse: str) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        from insula.errors import InsulaError
        from insula.model import network

        try:
            return getattr(network, self._parse)(value)
        except InsulaError as error:
            self.fail(f"{error.message}; {error.hint}", param, ctx)


def Rate() -> _Parsed:  # noqa: N802 - it stands where click's kinds stand
    """Bits per second, such as ``50mbit``."""
    return _Parsed("rate", "parse_rate")


def Port() -> _Parsed:  # noqa: N802 - as above
    """``[ADDR:]HOSTPORT:GUESTPORT[/udp]``."""
    return _Parsed("ports", "parse_publish")


def RuleWords() -> _Parsed:  # noqa: N802 - as above
    """A firewall's rule, such as ``allow to example.org tcp 443``."""
    return _Parsed("rule", "parse_rule")


def strip_dashes(words: Sequence[str]) -> tuple[str, ...]:
    """The guest's command, without the `--` that sets it apart. Raises UsageError for what looks like a flag and stands too late
    to be one."""
    if words[:1] == ("--",):
        return tuple(words[1:])
    if words and words[0].startswith("-"):
        raise UsageError(
            f"'{words[0]}' stands where the guest's command begins",
            code="late_flag",
            hint="flags stand before names; put -- before a command that begins so",
        )
    return tuple(words)
