"""How mmdebstrap is called: what is secret stands in no command line."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from insula.images import packages
from insula.images.mirror import Mirror

_SECRET = 'Acquire::http::Proxy "http://me:hunter2@proxy.example:3128"; '


class RoomHere:
    """Stands for a room: runs its scripts in this folder, and notes the other commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.called: list[list[str]] = []

    def run(self, argv: list[str], **_: Any) -> None:
        self.called.append(list(argv))

    def script(self, text: str, *words: str, data: bytes, **_: Any) -> None:
        from insula.host.process import run

        here = [str(self.folder / word.removeprefix("/work/")) for word in words]
        self.called.append([text, *words])
        run(["sh", "-euc", text, "sh", *here], data=data)


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RoomHere:
    monkeypatch.setattr(packages, "host_proxies", lambda: _SECRET)
    monkeypatch.setattr(packages, "require_program", lambda _: None)
    monkeypatch.setattr(packages, "require_keyring", lambda: None)
    return RoomHere(tmp_path)


def test_a_proxys_password_is_in_a_closed_file_and_no_command(room: RoomHere) -> None:
    packages.bootstrap(
        room,  # type: ignore[arg-type]  # the part of a room that is used
        "/work/tree", variant="extract", suite="trixie", arch="amd64", mirror=Mirror(), fraction=0.0, until=0.5,
    )  # fmt: skip
    assert "hunter2" not in str(room.called)
    (given,) = (word for word in room.called[-1] if word.startswith("--aptopt="))
    file = room.folder / given.removeprefix("--aptopt=/work/")
    assert _SECRET in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
