"""Why a guest did not come up: told by what it printed in this life, never by what it printed in a former one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from insula.errors import AgentAbsent, GuestError, InsulaError, MachineEnded, WrongState
from insula.operations.failed_boot import Printed, explain

PANIC = (
    b"insula-agent: cannot run /nothing: No such file or directory. The guest cannot start.\r\n"
    b"[    3.1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\r\n"
    b"[    3.1] Call Trace:\r\n[    3.1]  panic+0x1\x1b[2J\r\n"
    b"[    3.2] ---[ end Kernel panic - not syncing: Attempted to kill init! ]---\r\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "web"
    (folder / "run").mkdir(parents=True)
    (folder / "console.log").write_bytes(b"Kernel panic - not syncing: of a former life\n")
    return folder


def _print(folder: Path, said: bytes) -> None:
    with open(folder / "console.log", "ab") as stream:
        stream.write(said)


def test_lines_of_a_former_life_do_not_count(folder: Path) -> None:
    printed = Printed(folder)
    assert printed.last_lines() == ""
    _print(folder, b"one\r\n\r\ntwo\x1b[2J\nthree\nfour\n")
    assert printed.last_lines() == "two\\x1b[2J; three; four"
    (folder / "console.log").write_bytes(b"anew\n")  # full, so that it began anew
    assert printed.last_lines() == "anew"
    (folder / "console.log").unlink()
    assert printed.last_lines() == ""


def test_a_panic_tells_its_reason_and_what_our_agent_said_before(folder: Path) -> None:
    printed = Printed(folder)
    _print(folder, PANIC)
    (folder / "run/exit.json").write_text(json.dumps({"reason": "guest-panic", "status": 1}))
    error = explain(folder, printed, MachineEnded("the machine ended"), 5)
    assert isinstance(error, MachineEnded)
    assert error.code == "guest_panic"
    assert error.message == (
        "web ended while starting (its kernel panicked): "
        "insula-agent: cannot run /nothing: No such file or directory. The guest cannot start.; "
        "[    3.1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100"
    )


@pytest.mark.parametrize(
    ("record", "code", "message"),
    [
        (
            {"reason": "guest-shutdown"},
            "guest_shutdown",
            "web ended while starting (the guest shut itself down before it answered): bye",
        ),
        (
            {"reason": "crashed", "signal": "SEGV", "last_words": "a\noh"},
            "crashed",
            "web ended while starting (crashed: signal SEGV): oh",
        ),
        ({"reason": "host-qmp-quit"}, "stopped", "web ended while starting (stopped)"),
    ],
)
def test_an_end_is_named(folder: Path, record: dict[str, object], code: str, message: str) -> None:
    printed = Printed(folder)
    _print(folder, b"bye\n")
    (folder / "run/exit.json").write_text(json.dumps(record))
    error = explain(folder, printed, MachineEnded("the machine ended"), 5)
    assert (error.code, error.message) == (code, message)


def test_resets_and_silence_are_named(folder: Path) -> None:
    printed = Printed(folder)
    again = GuestError("…", code="guest_resets")
    assert explain(folder, printed, again, 5).message == "web was reset 3 times while booting, and printed nothing"
    _print(folder, PANIC * 3)
    error = explain(folder, printed, again, 5)
    assert error.message.startswith("web was reset 3 times while booting: [    3.1] Kernel panic")
    assert (error.code, "insula logs web" in (error.hint or "")) == ("guest_resets", True)
    late = explain(folder, printed, GuestError("…", code="timeout"), 5)
    assert isinstance(late, AgentAbsent)
    assert (late.code, late.message) == ("agent_timeout", "web did not answer within 5 s")


@pytest.mark.parametrize("cause", [GuestError("other", code="garbled"), WrongState("paused")])
def test_other_errors_stay_what_they_are(folder: Path, cause: InsulaError) -> None:
    assert explain(folder, Printed(folder), cause, 5) is cause
