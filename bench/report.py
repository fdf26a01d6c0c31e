"""The table, and its place in SPECIFICATION.md."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench import ROOT
from bench.pairs import Estimate
from insula.store.machines import BoardRecord

SPECIFICATION = ROOT / "SPECIFICATION.md"
BEGIN = "<!-- written by `python -m bench --write`: -->"
END = "<!-- end of what is written -->"
HEAD = (
    "| name | what | bar | measured (95 % interval) | ours | by hand | n | bar is | when (UTC) |",
    "|---|---|---|---|---|---|---|---|---|",
)


@dataclass(frozen=True)
class Row:
    """One measurement. ``measured``, ``ours`` and ``theirs`` are shown as they are; ``met`` is what the estimate says."""

    name: str
    what: str
    bar: str
    measured: str
    ours: str
    theirs: str
    n: int
    met: bool

    def line(self, when: str) -> str:
        verdict = "met" if self.met else "missed"
        cells = (f"`{self.name}`", self.what, self.bar, self.measured, self.ours, self.theirs, str(self.n), verdict, when)
        return f"| {' | '.join(cells)} |"


def shown(estimate: Estimate, unit: str = "", digits: int = 2, times: float = 1.0) -> str:
    """``1.04 (1.02 to 1.06)``; ``times`` is what the values are multiplied by, to be in ``unit``."""
    value, low, high = (f"{number * times:.{digits}f}" for number in (estimate.value, estimate.low, estimate.high))
    return f"{value}{unit} ({low} to {high})"


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M")


def host(board: BoardRecord) -> str:
    """The computer it was measured on, in one line."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"Measured on: {os.cpu_count()} cores, {memory:.0f} GiB of memory, Linux {platform.release()} "
        f"({platform.machine()}), Python {platform.python_version()}, QEMU {board.qemu} ({board.machine}), "
        f"accelerator {board.accelerator}; load of the computer when it began: {os.getloadavg()[0]:.1f}."
    )


def table(lines: list[str]) -> str:
    return "\n".join((*HEAD, *lines))


def write(about: str, lines: list[str], path: Path = SPECIFICATION) -> None:
    """Put ``lines`` between the marks of ``path``. Rows of other names stay as they were."""
    text = path.read_text()
    before, _, rest = text.partition(BEGIN)
    written, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{path} has lost its marks: {BEGIN} … {END}")
    rows = {_name(line): line for line in written.splitlines() if line.startswith("| `")}
    rows |= {_name(line): line for line in lines}
    path.write_text(f"{before}{BEGIN}\n\n{about}\n\n{table(list(rows.values()))}\n\n{END}{after}")


def _name(line: str) -> str:
    match = re.match(r"\| `([^`]+)`", line)
    assert match is not None
    return match[1]
