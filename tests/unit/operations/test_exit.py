"""The keeper's last record, as a user hears of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from insula.model.status import End
from insula.operations.observe import end_of, last_end, read_exit
from insula.store.ends import write_end


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        ({"reason": "guest-shutdown", "status": 0, "signal": None}, "guest-shutdown", ""),
        ({"reason": "guest-panic", "status": 1, "signal": None}, "guest-panic", "status 1"),
        ({"reason": "host-qmp-quit", "status": 0, "signal": None}, "stopped", ""),
        ({"reason": "host-signal", "status": 0, "signal": None}, "stopped", ""),
        ({"reason": "killed", "status": None, "signal": "KILL"}, "killed", "signal KILL"),
        ({"reason": "crashed", "status": None, "signal": "SEGV"}, "crashed", "signal SEGV"),
        ({"reason": "failed", "status": 1, "signal": None, "ran": False}, "failed-to-start", "status 1"),
        ({"reason": "failed", "status": 1, "signal": None, "ran": True}, "crashed", "status 1"),
        ({"reason": "killed", "signal": "KILL", "paused": "no-space"}, "disk-full", "signal KILL"),
        ({"reason": "\x1b[2J"}, "killed", "its keeper ended without saying why (killed, or the host went down)"),
        ({}, "killed", "its keeper ended without saying why (killed, or the host went down)"),
    ],
)
def test_every_end_has_a_word(tmp_path: Path, record: dict[str, object], reason: str, detail: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/exit.json").write_text(json.dumps({**record, "last_words": "oh\x07"}))
    end = read_exit(tmp_path)
    assert (end.reason, end.detail) == (reason, detail)
    assert "\x07" not in end.last_words


def test_what_qemu_says_in_good_order_are_no_last_words(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    idle = "qemu: Issue while setting TUNSETSTEERINGEBPF: Inappropriate ioctl\nqemu: Discarding RAM with readonly files kept it\n"
    for said, kept in ((idle, ""), (f"{idle}qemu: no room\n", "qemu: no room\n")):
        (tmp_path / "run/exit.json").write_text(json.dumps({"reason": "crashed", "last_words": said}))
        assert read_exit(tmp_path).last_words == kept


def test_a_run_folder_that_is_going_leaves_the_end_to_the_note(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert last_end(tmp_path) is None
    assert end_of(tmp_path).reason == "killed"
    noted = End(reason="guest-shutdown", at=7.0)
    write_end(tmp_path, noted)
    assert last_end(tmp_path) == end_of(tmp_path) == noted
    (tmp_path / "run/exit.json").touch()
    assert end_of(tmp_path).reason == "killed"
