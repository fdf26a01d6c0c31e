from __future__ import annotations

import os
from pathlib import Path

import pytest

WHEN = 1_234_567_890_123_456_789


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder named x with one of everything in it, all of the same time."""
    top = tmp_path / "source" / "x"
    (top / "deep" / "er").mkdir(parents=True)
    (top / "file").write_bytes(b"content")
    (top / "empty").touch()
    (top / "large").write_bytes(os.urandom(700_001))
    (top / "run").write_bytes(b"#!/bin/sh\n")
    (top / "run").chmod(0o755)
    (top / "deep" / "er" / os.fsdecode(b"caf\xe9")).write_bytes(b"name")
    (top / "link").symlink_to("deep/er")
    (top / "dangling").symlink_to("/nowhere")
    os.link(top / "file", top / "deep" / "same")
    os.mkfifo(top / "fifo")
    for path in [*top.rglob("*"), top]:
        os.utime(path, ns=(WHEN, WHEN), follow_symlinks=False)
    (top / "deep").chmod(0o555)
    return top
