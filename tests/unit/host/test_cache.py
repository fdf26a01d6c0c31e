"""What leaves the cache: what was not used for a month, and only that."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from insula.host.cache import KEPT, mark_used, prune
from insula.host.process import find_program

_REPOSITORY = Path(__file__).resolve().parents[3]


def _put(folder: Path, name: str, days: float) -> Path:
    path = folder / name
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "file").write_text("x")
    then = time.time() - days * 86400
    os.utime(path, (then, then))
    return path


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_what_was_not_used_for_a_month_goes(tmp_path: Path) -> None:
    current = _put(tmp_path, "native-1", 40)
    for name, days in (("native-2", 31), ("native-3", 29), ("zig-1", 90), ("native-4", 0), (".gone-12", 0)):
        _put(tmp_path, name, days)
    (tmp_path / "native-5").symlink_to(tmp_path / "zig-1")
    prune(tmp_path, "native-*", current=current)
    assert _names(tmp_path) == ["native-1", "native-3", "native-4", "native-5", "zig-1"]


def test_what_is_used_stays_for_another_month(tmp_path: Path) -> None:
    used, today = _put(tmp_path, "native-2", 31), _put(tmp_path, "native-3", 0.5)
    before = today.stat().st_mtime_ns
    mark_used(used)
    mark_used(today)
    mark_used(tmp_path / "absent")
    assert time.time() - used.stat().st_mtime < 60 < KEPT
    assert today.stat().st_mtime_ns == before  # noted at most once a day
    prune(tmp_path, "native-*", current=tmp_path / "native-1")
    assert _names(tmp_path) == ["native-2", "native-3"]


@pytest.mark.skipif(find_program("bwrap") is None, reason="bubblewrap is not installed")
def test_the_root_a_process_lives_in_stays(tmp_path: Path) -> None:
    lived_in = _put(tmp_path, "aa", 0)
    _put(tmp_path, "bb", 40)
    for name in ("usr", "proc"):
        (lived_in / name).mkdir()
    for name in ("bin", "lib", "lib64"):
        (lived_in / name).symlink_to(f"usr/{name}")
    os.utime(lived_in, (0, 0))
    jail = [
        "bwrap",
        "--unshare-user",
        "--unshare-pid",
        "--disable-userns",
        "--ro-bind",
        str(lived_in),
        "/",
        "--ro-bind",
        "/usr",
        "/usr",
    ]
    words = [*jail, "/bin/sh", "-c", "echo here; read -r x"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        prune(tmp_path, "[0-9a-f]*", current=tmp_path / "cc")
        assert _names(tmp_path) == ["aa"]
        process.stdin.write(b"\n")
        process.stdin.close()
    prune(tmp_path, "[0-9a-f]*", current=tmp_path / "cc")
    assert _names(tmp_path) == []


def test_the_launcher_removes_environments_nobody_uses(tmp_path: Path) -> None:
    for name, days in (("env-1", 40), ("env-2", 40), ("env-3", 20), ("env-4", 40)):
        _put(tmp_path, name, days)
    held = [f"{tmp_path}/env-4/bin/python", "-c", "input()"]
    with subprocess.Popen(held, executable=sys.executable, stdin=subprocess.PIPE) as process:
        script = f'. "{_REPOSITORY}/packaging/environment.sh"; cache={tmp_path} environment={tmp_path}/env-1; prune_environments'
        subprocess.run(["sh", "-euc", script], check=True, timeout=60)
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.close()
    assert _names(tmp_path) == ["env-1", "env-3", "env-4"]
