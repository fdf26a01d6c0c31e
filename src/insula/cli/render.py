"""How results look: aligned tables, ages, one progress line, JSON."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from insula.operations.operation import Progress


def print_json(value: Any) -> None:
    """``value`` (structs included) as indented JSON on standard output."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; no borders, so that it can be cut and sorted."""
    for line in table_lines(heads, rows):
        click.echo(line)


def table_lines(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Pure: the lines of such a table."""
    table = [tuple(heads), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(heads))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    shown = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        click.echo(f"{name + ':':<{width + 1}} {value}")


def age(since: float) -> str:
    """Time passed since a Unix time, in its largest unit: ``3 h``."""
    seconds = max(0.0, time.time() - since)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


class ProgressLine:
    """What an operation does now: a line that rewrites itself on a terminal, one line a step elsewhere, on standard error."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = sys.stderr.isatty()
        self._shown = ""
        self._drawn = False

    def __call__(self, progress: Progress) -> None:
        if progress.warning:
            self.clear()
            click.echo(f"insula: {progress.step}", err=True)
            return
        if self._quiet:
            return
        target = f" {progress.target}" if progress.target else ""
        text = f"{progress.verb}{target}: {progress.step}"
        if self._live:
            percent = f" {progress.fraction:.0%}" if progress.fraction is not None else ""
            width = shutil.get_terminal_size().columns
            sys.stderr.write("\r\x1b[K" + (text + percent)[: width - 1])
            sys.stderr.flush()
            self._drawn = True
        elif text != self._shown:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
        self._shown = text

    def clear(self) -> None:
        """Take the live line away before something else is printed."""
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = False
