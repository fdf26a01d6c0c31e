"""What the README shows works: every command of its console blocks is run, in order, and its Python too."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework.doors import cli_environment, run_cli

pytestmark = pytest.mark.limit(600)

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
# Not to be run here: cloning is how this checkout came to be, and the tests that fresh systems run are tests/fresh.
_ELSEWHERE = ("git clone", "./insula console", "./insula image build ./my-recipe.toml")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def _commands() -> list[str]:
    lines = [line for block in _blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    commands = [line.removeprefix("$ ").split("  #")[0].strip() for line in lines]
    return [command for command in commands if not command.startswith(_ELSEWHERE)]


@pytest.fixture
def launcher(tmp_path: Path) -> str:
    """Stands for `./insula`: the same commands by this test run's Python."""
    path = tmp_path / "insula"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -m insula "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def machines_gone(home: Path) -> Iterator[None]:
    yield
    run_cli(home, "delete", "-q", "--force", "web", "lab", "try-1", "try-2", "db", "www", "busy")
    run_cli(home, "network", "delete", "-q", "lan")


@pytest.mark.usefixtures("debian", "tiny", "machines_gone")
def test_every_command_shown_works(home: Path, launcher: str) -> None:
    commands, first = _commands(), b""
    with socket.create_server(("127.0.0.1", 0)) as reserved:  # somebody here may have the one that the README takes
        port = reserved.getsockname()[1]
    assert len(commands) > 10, "the README shows less than it did"
    for command in commands:
        done = subprocess.run(
            ["sh", "-c", command.replace("./insula", launcher).replace(" 8080:", f" {port}:")],
            env=cli_environment(home), cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"$ {command}\n{done.stdout.decode()}{done.stderr.decode()}"
        if "tr a-z A-Z" in command:
            assert done.stdout == b"HELLO\n"
        if command.endswith("run debian -- uname -a"):
            first = done.stdout
    assert first.startswith(b"Linux ")
    assert first.count(b"\n") == 1, "something else was written where the guest's answer belongs"


@pytest.mark.usefixtures("debian")
def test_the_python_shown_works(home: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("hello")
    code = "\n".join(_blocks("python"))
    assert "insula.run" in code
    done = subprocess.run(
        [sys.executable, "-c", code], env=cli_environment(home), cwd=tmp_path, capture_output=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.startswith(b"Linux ")
