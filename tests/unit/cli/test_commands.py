"""Commands that are not there: the right one is offered, and no wrong one."""

from __future__ import annotations

import pytest

from insula.cli.group import _ELSEWHERE
from insula.cli.main import _COMMANDS, run_command


@pytest.mark.parametrize(
    ("word", "offered"),
    [("restrat", "restart"), ("lst", "list"), ("ps", "list"), ("rm", "delete"), ("remove", "delete"), ("images", "image list")],
)
def test_the_nearest_command_is_offered(capsys: pytest.CaptureFixture[str], word: str, offered: str) -> None:
    assert run_command([word]) == 2
    assert capsys.readouterr().err.splitlines()[0] == f"insula: No such command '{word}'. Did you mean {offered}?"


@pytest.mark.parametrize(("word", "offered"), [("rm", "delete"), ("ls", "list"), ("shwo", "show"), ("pull", "build")])
def test_so_it_is_within_a_noun(capsys: pytest.CaptureFixture[str], word: str, offered: str) -> None:
    assert run_command(["image", word]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"insula: No such command '{word}'. Did you mean {offered}?",
        "hint: see: insula image --help",
    ]
    assert run_command(["image", "poweroff"]) == 2
    assert capsys.readouterr().err.splitlines()[0] == "insula: No such command 'poweroff'."


def test_nothing_is_offered_for_what_is_unlike_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["frobnicate"]) == 2
    assert capsys.readouterr().err.splitlines()[0] == "insula: No such command 'frobnicate'."


def test_what_others_call_it_names_commands_of_ours() -> None:
    for word, ours in _ELSEWHERE.items():
        assert word not in _COMMANDS
        assert ours.startswith("--") or ours.split()[0] in _COMMANDS


@pytest.mark.parametrize("words", [["run", "tiny", "--rm"], ["exec", "web", "-t", "sh"]])
def test_a_flag_that_comes_too_late_is_no_command(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert run_command(words) == 125
    assert capsys.readouterr().err.splitlines()[0] == f"insula: '{words[2]}' stands where the guest's command begins"


@pytest.mark.parametrize(
    "words",
    [
        ["-n", "2", "--name", "one", "web"],
        ["web", "-n", "2", "--name", "one"],
        ["web", "-n", "2", "--name", "one", "--", "ls", "-l"],
    ],
)
def test_a_forks_flags_stand_before_its_name_or_after(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert run_command(["fork", *words]) == 125
    assert "{n}" in capsys.readouterr().err, "all of them were understood: two cannot have one name"


def test_what_follows_two_dashes_is_a_forks_command_whatever_it_looks_like(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["fork", "nosuch", "--", "--help"]) == 125
    assert "no machine named 'nosuch'" in capsys.readouterr().err
