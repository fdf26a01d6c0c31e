"""What the rewinding commands draw, label and refuse, without any machine."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.cli.each import Labelled
from insula.cli.main import run_command
from insula.cli.rewind import tree
from insula.errors import UsageError
from insula.model.names import split_snapshot
from insula.model.status import SnapshotStatus


def _snapshot(name: str, parent: str | None = None, machine: str = "web") -> SnapshotStatus:
    return SnapshotStatus(machine=machine, name=name, state="running", created=1.0, size=1, parent=parent)


def test_the_tree_shows_who_descends_from_whom() -> None:
    snapshots = [
        _snapshot("a"), _snapshot("b", "a"), _snapshot("c", "b"), _snapshot("d", "a"), _snapshot("e", "d"), _snapshot("f"),
        _snapshot("b", machine="shop"), _snapshot("z", "deleted"),
    ]  # fmt: skip
    assert [f"{lines}{each.machine}@{each.name}" for lines, each in tree(snapshots)] == [
        "web@a",
        "├─ web@b",
        "│  └─ web@c",
        "└─ web@d",
        "   └─ web@e",
        "web@f",
        "shop@b",
        "web@z",
    ]


@given(st.lists(st.integers(min_value=-1, max_value=60), max_size=60))
def test_the_tree_shows_each_once_after_its_parent(parents: list[int]) -> None:
    snapshots = [_snapshot(f"s{n}", f"s{parent}" if -1 < parent < n else None) for n, parent in enumerate(parents)]
    shown = [each.name for _, each in tree(snapshots)]
    assert sorted(shown) == sorted(each.name for each in snapshots)
    for each in snapshots:
        assert each.parent is None or shown.index(each.parent) < shown.index(each.name)


def test_a_long_row_of_snapshots_is_drawn() -> None:
    row = [_snapshot(f"s{n}", f"s{n - 1}" if n else None) for n in range(1500)]
    assert sum(1 for _ in tree(row)) == 1500


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_labelled_output_is_the_same_lines_however_it_comes(pieces: list[bytes]) -> None:
    stream = io.BytesIO()
    labelled = Labelled("web | ", stream)
    for piece in pieces:
        labelled.write(piece)
    labelled.finish()
    whole = b"".join(pieces)
    lines = whole.removesuffix(b"\n").split(b"\n") if whole else []
    assert stream.getvalue() == b"".join(b"web | " + line + b"\n" for line in lines)


def test_a_line_without_end_does_not_pile_up() -> None:
    stream = io.BytesIO()
    labelled = Labelled("", stream)
    for _ in range(100):
        labelled.write(b"x" * 10_000)
    assert len(stream.getvalue()) > 900_000


@pytest.mark.parametrize(("text", "parts"), [("web", ("web", "")), ("web@a", ("web", "a")), ("web@a@b", ("web", "a@b"))])
def test_a_snapshot_is_named_after_its_machine(text: str, parts: tuple[str, str]) -> None:
    assert split_snapshot(text) == parts


@pytest.mark.parametrize("text", ["web@", "@a", "@", ""])
def test_half_a_name_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        split_snapshot(text)
    assert refused.value.code == "bad_name"


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("snapshot", "restore", "web"), 2, "insula snapshot list web"),
        (("snapshot", "delete", "web"), 2, "names a machine and no snapshot"),
        (("snapshot", "create", "web@../x"), 2, "a snapshot's name"),
        (("snapshot", "create", "nosuch"), 1, "no machine named 'nosuch'"),
        (("fork", "web@"), 125, "names no snapshot"),
        (("fork", "-n", "2", "-i", "web", "--", "cat"), 125, "cannot share"),
        (("fork", "-n", "0", "web"), 125, "0 forks"),
        (("fork", "-n", "2", "--name", "one", "web"), 125, "{n}"),
        (("fork", "nosuch"), 125, "no machine named 'nosuch'"),
        (("suspend", "nosuch"), 1, "no machine named 'nosuch'"),
        (("clone", "nosuch", "new"), 1, "no machine named 'nosuch'"),
        (("clone", "nosuch", "No!"), 2, "cannot be a machine's name"),
        (("image", "warm", "delete", "nosuch"), 1, "nosuch"),
    ],
)
def test_what_cannot_be_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    status: int,
    told: str,
) -> None:
    monkeypatch.setenv("INSULA_HOME", str(tmp_path / "home"))
    assert run_command(list(words)) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert told in said.err


def test_there_are_no_warm_states_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INSULA_HOME", str(tmp_path / "home"))
    assert run_command(["image", "warm", "list", "--json"]) == 0
    assert capsys.readouterr().out == "[]\n"
