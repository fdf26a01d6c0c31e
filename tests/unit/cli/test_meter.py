"""How far a copy is: told on a terminal, and nowhere else."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.cli.inside import _meter
from insula.cli.meter import CopyMeter
from insula.guest.copying import copy_in, copy_out
from insula.guest.link import Link


@contextlib.contextmanager
def _terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Standard error is a terminal; the end that shows what is written to it."""
    ours, theirs = pty.openpty()
    with open(theirs, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", stream)
        yield ours
    os.close(ours)


def test_a_copy_that_takes_time_is_told_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{CopyMeter.__module__}._PAUSE", 3600.0)
    with _terminal(monkeypatch) as terminal:
        meter = CopyMeter("web", patience=0)
        meter.expect(4 << 20)
        meter(1 << 20)
        meter(1 << 20)  # too soon after the first
        meter.clear()
        told = os.read(terminal, 4096).decode().split("\r\x1b[K")
    assert re.fullmatch(r"copy web: 1\.0 MiB, [\d.]+ .iB/s 25%", told[1])
    assert told[2:] == [""]


def test_a_quick_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with _terminal(monkeypatch) as terminal:
        meter = CopyMeter("web")
        meter(1 << 20)
        meter.clear()
        assert select.select([terminal], [], [], 0)[0] == []


def test_nothing_is_measured_where_nobody_is_told() -> None:
    with _meter("web", told=False) as meter:
        assert meter is None


class _Sum:
    """A meter that adds up."""

    def __init__(self) -> None:
        self.total: int | None = None
        self.done = 0

    def expect(self, total: int) -> None:
        self.total = total

    def __call__(self, count: int) -> None:
        self.done += count


def test_both_ways_are_measured(agent: Link, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    there, back = _Sum(), _Sum()
    copy_in(agent, [tmp_path / "file"], str(tmp_path / "there"), meter=there)
    copy_out(agent, [str(tmp_path / "there")], tmp_path / "back", meter=back)
    for meter in (there, back):
        assert meter.total == 1 << 20
        assert 1 << 20 < meter.done < (1 << 20) + 1000
