"""The table in SPECIFICATION.md, and the bars it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import report
from bench.bars import BARS
from bench.pairs import Estimate
from bench.report import BEGIN, END, SPECIFICATION, Row, shown, write


def row(name: str, measured: str, met: bool = True) -> str:
    return Row(name, "this / that", "≤ 1.2 ×", measured, "12 ms", "10 ms", 7, met).line("2030-01-02 03:04")


def test_a_row_says_whether_its_bar_is_met() -> None:
    assert row("noop", "1.20") == "| `noop` | this / that | ≤ 1.2 × | 1.20 | 12 ms | 10 ms | 7 | met | 2030-01-02 03:04 |"
    assert "| missed |" in row("noop", "1.21", met=False)


def test_estimates_are_shown_with_their_interval() -> None:
    assert shown(Estimate(1.234, 1.1, 1.3)) == "1.23 (1.10 to 1.30)"
    assert shown(Estimate(0.0586, 0.0571, 0.06), " ms", 0, 1000.0) == "59 ms (57 to 60)"


def test_rows_are_replaced_by_name_and_the_rest_of_the_page_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{BEGIN}\n{END}\n\nThe end.\n")
    write("on a computer", [row("noop", "1.0"), row("exec", "1.1")], page)
    write("on another", [row("exec", "0.9")], page)
    text = page.read_text()
    assert text.startswith(f"# Title\n\n{BEGIN}\n\non another\n")
    assert text.endswith(f"{END}\n\nThe end.\n")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows == [row("noop", "1.0"), row("exec", "0.9")]


def test_a_page_without_marks_is_not_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n")
    with pytest.raises(SystemExit):
        write("on a computer", [row("noop", "1.0")], page)
    assert page.read_text() == "# Title\n"


def test_the_specification_explains_every_bar_and_has_its_marks() -> None:
    text = SPECIFICATION.read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    for name in BARS:
        assert f"### `python -m bench {name}`" in text, name
    names = {report._name(line) for line in text.splitlines() if line.startswith("| `")}
    assert {name for name in names if not any(name == bar or name.startswith(f"{bar}-") for bar in BARS)} == set()
