"""What `insula copy` says of words it cannot do anything with."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula.cli.main import run_command


def _refused(capsys: pytest.CaptureFixture[str], *words: str, status: int = 2) -> list[str]:
    assert run_command(["copy", *words]) == status
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("words", [("f", "web:"), ("web:", ".")])
def test_an_empty_path_in_the_guest_is_refused(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    assert _refused(capsys, *words) == ["insula: 'web:' names no path in the guest", "hint: say where, as in: web:/root/"]


@pytest.mark.parametrize(
    ("words", "status"), [(("a:b", "web:/tmp"), 2), (("A:b", "web:/tmp"), 2), (("a:b", "."), 1), (("x", "a:b"), 1)]
)
def test_a_local_file_with_a_colon_is_recognized(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], status: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSULA_HOME", str(tmp_path / "home"))
    for name in ("x", "a:b", "A:b"):
        (tmp_path / name).touch()
    name = next(word for word in words if ":b" in word)
    assert _refused(capsys, *words, status=status)[-1] == f"hint: for the file '{name}' of this computer write ./{name}"
    (tmp_path / name).unlink()
    assert "./" not in _refused(capsys, *words, status=status)[-1]
