"""Insula can start itself again, and writes no compiled files beside its sources when it was told where to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from insula.host.program import own_command
from insula.version import __version__


def test_it_is_this_insula(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path / "compiled"))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    done = subprocess.run(own_command("--version"), capture_output=True, text=True, check=True, cwd=tmp_path, env={})
    assert done.stdout == f"insula {__version__}\n"
    assert list((tmp_path / "compiled").rglob("*.pyc"))


def test_without_a_prefix_python_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "pycache_prefix", None)
    assert own_command("list")[:2] == (sys.executable, "-I")
    assert "-X" not in own_command("list")


def test_who_writes_no_compiled_files_starts_nobody_who_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert "-B" in own_command("list")
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert "-B" not in own_command("list")
