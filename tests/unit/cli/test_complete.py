"""What Tab offers, asked as the shell asks: by the command's own completion class."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from insula.cli.main import cli


def offered(*words: str) -> list[tuple[str, str]]:
    shell = ShellComplete(cli, {}, "insula", "_INSULA_COMPLETE")
    return [(item.type, item.value) for item in shell.get_completions(list(words[:-1]), words[-1])]


@pytest.fixture(autouse=True)
def _empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSULA_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "read me").touch()


def test_images_that_come_with_insula_are_offered() -> None:
    assert ("plain", "tiny") in offered("run", "t")
    assert offered("image", "show", "nothing-like-it") == []


def test_a_recipe_may_be_a_file() -> None:
    assert offered("image", "build", "./mine") == [("file", "./mine")]


@pytest.mark.parametrize("begun", ["", "rea", "web:/etc"])
def test_a_copy_starts_from_files(begun: str) -> None:
    assert offered("copy", begun) == [("file", begun)]


def test_a_machine_that_is_not_there_is_no_error() -> None:
    assert offered("exec", "w") == []


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("snapshot", "restore", "w"), ["web@after", "web@before"]),
        (("snapshot", "restore", "web@b"), ["web@before"]),
        (("snapshot", "delete", "web@after", "web@"), ["web@before"]),
        (("fork", "w"), ["web"]),
        (("fork", "web@a"), ["web@after"]),
        (("fork", "nosuch@"), []),
    ],
)
def test_snapshots_are_offered_with_their_machine(tmp_path: Path, words: tuple[str, ...], names: list[str]) -> None:
    for snapshot in ("before", "after"):
        (tmp_path / "state" / "machines" / "web" / "snapshots" / snapshot).mkdir(parents=True)
    assert [value for _, value in offered(*words)] == names
