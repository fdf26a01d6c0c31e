"""The keeper beside QEMU: states, the end, the console, events, holds."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
from pathlib import Path

import pytest

from insula.errors import GuestError, MachineEnded
from insula.guest import keeper, wire
from tests.unit.native.rig import Rig, read_exactly


def test_it_is_ready_when_qemu_says_how_it_is(rig: Rig) -> None:
    rig.greet()
    status = rig.record("status")
    assert (status["state"], status["agent"]) == ("running", False)
    assert os.stat(rig.folder / "status").st_size == 1024
    assert rig.status().text("state") == "running"


@pytest.mark.parametrize(
    ("word", "state", "reason"),
    [
        ("inmigrate", "paused", "inmigrate"),
        ("prelaunch", "paused", "prelaunch"),
        ("paused", "paused", ""),
        ("running", "running", ""),
    ],
)
def test_the_state_is_qemus(rig: Rig, word: str, state: str, reason: str) -> None:
    status = rig.greet(word).status()
    assert (status.text("state"), status.text("reason")) == (state, reason)


def test_before_qemu_says_anything_it_starts(rig: Rig) -> None:
    assert rig.status().text("state") == "starting"


def test_pause_and_resume(rig: Rig) -> None:
    rig.greet()
    rig.event("STOP")
    assert rig.command() == "query-status"
    rig.answer("query-status", {"status": "internal-error", "running": False})
    status = rig.status()
    assert (status.text("state"), status.text("reason")) == ("paused", "internal-error")
    rig.event("RESUME")
    assert rig.status().text("state") == "running"
    assert rig.record("status")["state"] == "running"


@pytest.mark.parametrize("resumed_too_early", [False, True])
def test_a_full_host_disk_is_told_apart(rig: Rig, resumed_too_early: bool) -> None:
    rig.greet()
    rig.event("BLOCK_IO_ERROR", device="", node="disk0", operation="write", action="stop", nospace=True, reason="No space left")
    if resumed_too_early:  # QEMU tries the request again, and tells of its failure before it tells of the resuming
        rig.event("RESUME")
    rig.event("STOP")
    assert rig.command() == "query-status"
    rig.answer("query-status", {"status": "io-error", "running": False})
    status = rig.status()
    assert (status.text("state"), status.text("reason")) == ("paused", "no-space")
    record = rig.end("kill -KILL $$")
    assert (record["reason"], record["paused"]) == ("killed", "no-space")


def test_a_reported_error_does_not_pause(rig: Rig) -> None:
    rig.greet()
    rig.event("BLOCK_IO_ERROR", device="", operation="read", action="report", nospace=True)
    rig.event("STOP")
    assert rig.status().text("reason") == ""


def test_a_guest_that_is_reset_again_and_again_is_not_waited_for(rig: Rig) -> None:
    rig.greet()
    waiting = rig.link()
    channel = waiting.open("keeper.wait", until="agent")
    with pytest.raises(GuestError) as error:
        waiting.call("keeper.wait", until="agent", wait_ms=0, timeout=10)  # from now on the first one is known to wait
    assert error.value.code == "timeout"
    rig.event("RESET", guest=False, reason="host-qmp-system-reset")
    for _ in range(2):
        rig.event("RESET", guest=True, reason="guest-reset")
    assert rig.status().text("state") == "running"
    with pytest.raises(GuestError) as error:
        rig.link().call("keeper.wait", until="agent", wait_ms=1, timeout=10)
    assert error.value.code == "timeout"  # a guest may reset itself twice, and who comes later begins to count anew
    assert channel.result is None
    rig.event("RESET", guest=True, reason="guest-reset")
    with pytest.raises(GuestError) as error:
        channel.finish(10)
    assert error.value.code == "guest_resets"


# -- the end ----------------------------------------------------------------------------------------------------------------
def shutdown(rig: Rig, reason: str, guest: bool) -> None:
    rig.event("SHUTDOWN", guest=guest, reason=reason)


@pytest.mark.parametrize(
    ("reason", "guest"), [("guest-shutdown", True), ("guest-reset", True), ("host-qmp-quit", False), ("host-signal", False)]
)
def test_qemus_own_word_is_the_reason(rig: Rig, reason: str, guest: bool) -> None:
    rig.greet()
    shutdown(rig, reason, guest)
    record = rig.end()
    assert (record["reason"], record["guest"], record["status"], record["ran"]) == (reason, guest, 0, True)
    status = rig.record("status")
    assert (status["state"], status["reason"]) == ("ended", reason)
    assert rig.events() == ["STARTED", "SHUTDOWN", "ENDED"]


def test_a_panic_is_one(rig: Rig) -> None:
    rig.greet()
    rig.event("GUEST_PANICKED", action="shutdown")
    shutdown(rig, "guest-panic", True)
    record = rig.end("exit 1")
    assert (record["reason"], record["panicked"], record["status"]) == ("guest-panic", True, 1)


def test_the_first_word_counts(rig: Rig) -> None:
    rig.greet()
    shutdown(rig, "guest-shutdown", True)
    shutdown(rig, "host-qmp-quit", False)
    assert rig.end()["reason"] == "guest-shutdown"


def test_a_crash_and_its_last_words(rig: Rig) -> None:
    rig.greet()
    record = rig.end("printf 'corrupted \\033[31m\\377 \\303\\251 heap\\n' >&2; kill -SEGV $$")
    assert (record["reason"], record["signal"], record["status"]) == ("crashed", "SEGV", None)
    assert record["last_words"] == "corrupted \x1b[31m\ufffd é heap\n"
    assert b"corrupted" in (rig.folder / "qemu-log").read_bytes()
    assert (rig.folder / "exit").read_bytes().isascii()


def test_killed_by_somebody(rig: Rig) -> None:
    record = rig.greet().end("kill -KILL $$")
    assert (record["reason"], record["killed_by_keeper"]) == ("killed", False)


def test_qemu_that_dies_at_once(rig: Rig) -> None:
    record = rig.end("echo 'qemu: no such device' >&2; exit 1")
    assert (record["reason"], record["status"], record["ran"]) == ("failed", 1, False)
    assert record["last_words"] == "qemu: no such device\n"
    assert os.read(rig.ready, 1000) == b"failed: QEMU ended at once (failed): qemu: no such device \n"


def test_qemu_that_is_not_there(keeper_program: str, short_folder: Path) -> None:
    rig = Rig(keeper_program, short_folder, ["/nonexistent/qemu"])
    try:
        record = rig.ended()
    finally:
        rig.close()
    assert (record["reason"], record["status"]) == ("failed", 127)
    assert "cannot start /nonexistent/qemu: No such file" in record["last_words"]


def test_the_record_stays_small_whatever_was_said(rig: Rig) -> None:
    rig.greet()
    record = rig.end("i=0; while [ $i -lt 2000 ]; do printf '\\001\\002\\003\\004'; i=$((i+1)); done; echo end; exit 3")
    assert os.stat(rig.folder / "exit").st_size <= 8192
    assert record["last_words"].endswith("\x04end\n")


def test_who_waits_for_the_end_hears_why(rig: Rig) -> None:
    rig.live()
    link = rig.link()
    ends = link.open("keeper.wait", until="end")
    runs = link.open("exec", argv=[b"sleep"])
    agent = rig.agent.read()
    assert agent.type == wire.OPEN
    shutdown(rig, "guest-shutdown", True)
    rig.end()
    assert ends.finish(10).text("reason") == "guest-shutdown"
    with pytest.raises(MachineEnded, match="guest-shutdown"):
        runs.finish(10)


def test_what_qemu_said_last_is_not_lost(rig: Rig) -> None:
    """QEMU's sockets are read to their end, however the end of the process is learnt first."""
    rig.live()
    link = rig.link()
    channel = link.open("exec", argv=[b"poweroff"])
    opened = rig.agent.read()
    os.kill(rig.process.pid, signal.SIGSTOP)
    rig.console.sendall(b"Power down\r\n")
    rig.agent.send(wire.DATA, opened.channel, b"bye", wire.STDOUT)
    rig.agent.result(opened.channel, code=0)
    shutdown(rig, "guest-shutdown", True)
    rig.child("exit 0")
    for connection in (rig.qmp, rig.agent.port, rig.console):
        connection.shutdown(socket.SHUT_RDWR)
    os.kill(rig.process.pid, signal.SIGCONT)
    assert rig.ended()["reason"] == "guest-shutdown"
    assert (rig.folder / "console-log").read_bytes() == b"Power down\r\n"
    assert channel.next(10) == (wire.STDOUT, b"bye")
    assert channel.finish(10).number("code") == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE])
def test_signals_do_not_end_it(rig: Rig, number: int) -> None:
    rig.greet()
    os.kill(rig.process.pid, number)
    assert rig.status().text("state") == "running"


# -- keeper.quit and keeper.hold -----------------------------------------------------------------------------------------------
def test_quit_asks_qemu(rig: Rig) -> None:
    rig.greet()
    link = rig.link()
    channel = link.open("keeper.quit", how="quit")
    assert rig.command() == "quit"
    shutdown(rig, "host-qmp-quit", False)
    rig.end()
    assert channel.finish(10).text("reason") == "host-qmp-quit"


def test_kill_does_not_ask(rig: Rig) -> None:
    rig.greet()
    keeper.quit_machine(rig.link(), "kill", timeout=10)
    record = rig.ended()
    assert (record["reason"], record["signal"], record["killed_by_keeper"]) == ("killed", "KILL", True)


def test_quit_before_qemu_is_up_comes_after_the_greeting(rig: Rig) -> None:
    link = rig.link()
    link.open("keeper.quit", how="quit")
    link.call("keeper.status", timeout=60)
    rig.say({"QMP": {}})
    assert [rig.command(), rig.command()] == ["qmp_capabilities", "quit"]


def test_a_guest_whose_holder_died_goes_on(rig: Rig) -> None:
    rig.greet()
    link = rig.link()
    keeper.hold(link, "resume")
    link.close()
    assert rig.command() == "cont"
    rig.status()
    assert "HOLDER_DIED" in rig.events()


def test_a_hold_let_go_does_nothing(rig: Rig) -> None:
    rig.greet()
    link = rig.link()
    with keeper.hold(link, "resume"):
        pass
    keeper.status(link)
    link.close()
    other = rig.link()
    keeper.hold(other, "quit")
    other.close()
    assert rig.command() == "quit"  # and no "cont" before it


@pytest.mark.limit(20)
def test_a_qemu_that_does_not_quit_is_killed(rig: Rig) -> None:
    rig.greet()
    link = rig.link()
    keeper.hold(link, "quit")
    link.close()
    assert rig.ended()["killed_by_keeper"] is True


def test_wait_gives_up_in_time(rig: Rig) -> None:
    rig.greet()
    with pytest.raises(GuestError) as caught:
        keeper.wait_end(rig.link(), 0.05)
    assert caught.value.code == "timeout"
    with pytest.raises(GuestError):
        keeper.wait_agent(rig.link(), 0)


@pytest.mark.parametrize(
    ("verb", "fields", "error"),
    [
        ("keeper.wait", {"until": "doomsday"}, "EINVAL"),
        ("keeper.wait", {}, "EINVAL"),
        ("keeper.hold", {}, "EINVAL"),
        ("keeper.hold", {"on_drop": "explode"}, "EINVAL"),
        ("keeper.quit", {"how": "softly"}, "EINVAL"),
        ("keeper.unheard-of", {}, "ENOSYS"),
        ("keeper." + "x" * 100, {}, "ENOSYS"),
    ],
)
def test_nonsense_is_refused(rig: Rig, verb: str, fields: dict[str, str], error: str) -> None:
    client = rig.raw()
    client.open(1, verb, **fields)
    assert client.result(1).text("error") == error


# -- the console ----------------------------------------------------------------------------------------------------------------
def read_all(channel: object) -> bytes:
    return b"".join(data for _, data in channel)  # type: ignore[attr-defined]  # a Channel, whose class is none of our business


def test_the_console_is_kept_and_followed(rig: Rig) -> None:
    rig.greet()
    rig.console.sendall(b"Booting\r\n")
    rig.status()
    link, other = rig.link(), rig.link()
    follower = link.open("keeper.console", follow=1)
    assert follower.next(10) == (wire.STDOUT, b"Booting\r\n")
    assert read_all(other.open("keeper.console", follow=0)) == b"Booting\r\n"
    rig.console.sendall(b"login: ")
    assert follower.next(10) == (wire.STDOUT, b"login: ")
    rig.end()
    assert follower.next(10) == (wire.STDOUT, b"")
    assert follower.finish(10) is not None
    assert (rig.folder / "console-log").read_bytes() == b"Booting\r\nlogin: "


def test_keys_reach_the_guest_from_those_who_may_type(rig: Rig) -> None:
    rig.greet()
    typist = rig.link().open("keeper.console", follow=1, input=1)
    typist.write(b"root\n")
    assert rig.console.recv(100) == b"root\n"
    client = rig.raw()
    client.open(1, "keeper.console", follow=1)
    client.send(wire.DATA, 1, b"rm -rf /\n")
    assert client.result(1).text("error") == "EPROTO"
    typist.write(b"x")
    assert rig.console.recv(100) == b"x"


def test_the_end_of_the_keys_ends_a_console(rig: Rig) -> None:
    rig.greet()
    rig.console.sendall(b"login: ")
    rig.status()
    typist, watcher = rig.link().open("keeper.console", follow=1, input=1), rig.link().open("keeper.console", follow=1)
    typist.write(b"root\n")
    typist.eof()
    assert read_all(typist) == b"login: "
    assert rig.console.recv(100) == b"root\n"
    watcher.eof()  # it has no keys that could end
    assert watcher.next(10) == (wire.STDOUT, b"login: ")
    rig.console.sendall(b"Password: ")
    assert watcher.next(10) == (wire.STDOUT, b"Password: ")


def test_many_keys_get_credit(rig: Rig) -> None:
    rig.greet()
    client = rig.raw()
    client.open(1, "keeper.console", follow=1, input=1)
    sent = 0
    while sent < 3 * wire.WINDOW:
        client.send(wire.DATA, 1, bytes(4096))
        sent += 4096
        read_exactly(rig.console, 4096)
    assert client.read() is not None


def test_a_slow_reader_loses_text_and_is_told(rig: Rig) -> None:
    rig.greet()
    client = rig.raw()
    client.open(1, "keeper.console", follow=1)
    rig.status()
    line = b"line %6d of the guest's very long boot\r\n"
    rig.console.sendall(b"".join(line % i for i in range(12_000)))  # more than the window, the ring and all buffers between
    text = b""
    while not text.endswith(line % 11_999):
        frame = client.read()
        assert frame is not None
        text += frame.payload
        client.send(wire.CREDIT, 1, wire.encode_credit(len(frame.payload)), wire.STDOUT)
    assert text.startswith(line % 0)
    # Once at least; again whenever the guest overtakes the reader once more.
    lost = [int(count) for count in re.findall(rb"\[(\d+) bytes of the console were lost here\]", text)]
    kept = re.sub(rb"\r\n\[\d+ bytes of the console were lost here\]\r\n", b"", text)
    assert lost
    assert len(kept) + sum(lost) == 12_000 * len(line % 0)


def test_the_console_log_is_bounded(rig: Rig) -> None:
    rig.greet()
    block = b"0123456789abcde\n" * 4096
    for _ in range(40):
        rig.console.sendall(block)
    rig.console.sendall(b"the end")
    rig.end()
    new, old = (rig.folder / "console-log").read_bytes(), (rig.folder / "console-log-old").read_bytes()
    assert len(new) <= 1 << 20
    assert len(old) <= 1 << 20
    assert len(new) + len(old) > 1 << 20
    assert (old + new) == (block * 40 + b"the end")[-len(old) - len(new) :]


# -- events ----------------------------------------------------------------------------------------------------------------
def test_events_are_kept_and_followed(rig: Rig) -> None:
    rig.greet()
    channel = rig.link().open("keeper.events", follow=1)
    assert json.loads(channel.next(10)[1])["event"] == "STARTED"  # type: ignore[index]  # there is one
    rig.event("POWERDOWN")
    event = json.loads(channel.next(10)[1])  # type: ignore[index]
    assert (event["event"], event["data"]) == ("POWERDOWN", {})
    assert event["time"] > 10**18
    rig.event("RTC_CHANGE", offset=78)
    rig.event("RESET", guest=True, reason="guest-reset")
    rig.end()
    rest = [json.loads(line)["event"] for line in read_all(channel).splitlines()]
    assert rest == ["RESET", "ENDED"]
    assert rig.events() == ["STARTED", "POWERDOWN", "RESET", "ENDED"]


def test_the_journal_is_bounded(rig: Rig) -> None:
    rig.greet()
    for i in range(300):
        rig.event("NOISE", text="x" * 1000, number=i)
    rig.event("HUGE", text="y" * 10_000)
    rig.end()
    new, old = (rig.folder / "events").read_bytes(), (rig.folder / "events-old").read_bytes()
    assert len(new) <= 256 << 10
    assert len(old) <= 256 << 10
    lines = [json.loads(line) for line in (old + new).splitlines()]
    assert [line["data"]["number"] for line in lines if line["event"] == "NOISE"] == list(range(300))
    assert [line["data"] for line in lines if line["event"] == "HUGE"] == [{"too_long": True}]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\n\r\n", b"not json\r\n", b'{"event": "A\x1b[0m"}\r\n', b"[" * 5000 + b"\n", b"{}\n", b'{"event": 7}\n',
        b"x" * 200_000 + b"\n", b'{"return": [}\n', b'{"event": "SHUTDOWN", "data": 3}\n', b"\xff\xfe\n", b'"\\ud800"\n',
        b'{"QMP": {}}\n',
    ],
)  # fmt: skip
def test_garbage_from_the_monitor_is_survived(rig: Rig, garbage: bytes) -> None:
    rig.greet()
    rig.say(garbage)
    rig.event("POWERDOWN")
    rig.status()
    assert "POWERDOWN" in rig.events()
    for line in (rig.folder / "events").read_bytes().splitlines():
        assert line.isascii()
        json.loads(line)


def test_an_event_stays_one_line_however_it_was_laid_out(rig: Rig) -> None:
    rig.greet()
    rig.say(b'{"event":\t"NOISE", "data":\r{"number":\r\t7\t}\r}\r\n')
    rig.status()
    line = (rig.folder / "events").read_bytes().decode().split("\n")[-2]
    assert line.isprintable()
    assert (json.loads(line)["event"], json.loads(line)["data"]) == ("NOISE", {"number": 7})


def test_a_reason_is_a_word(rig: Rig) -> None:
    rig.greet()
    shutdown(rig, 'x", "status": "\x1b[2J', True)
    assert rig.end()["reason"] == "ended"


# -- what QEMU gets ----------------------------------------------------------------------------------------------------------
def test_qemu_gets_only_what_it_needs(rig: Rig) -> None:
    rig.greet()
    rig.child("ls /proc/self/fd >&2; grep -E 'SigBlk|SigIgn|NoNewPrivs' /proc/self/status >&2")
    words = rig.end()["last_words"].split()
    numbers = sorted(int(word) for word in words if word.isdigit() and len(word) < 4)
    assert [n for n in numbers if n > 2 and n != rig.kept_fd] in ([3], [3, 1], [])  # ls opens the folder itself
    assert rig.kept_fd in numbers
    assert words[words.index("SigBlk:") + 1] == "0" * 16
    assert words[words.index("NoNewPrivs:") + 1] == "1"


def test_qemu_ends_with_its_keeper(rig: Rig) -> None:
    rig.greet()
    pid = rig.record("status")["qemu_pid"]
    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, 0)  # it is there
    rig.process.kill()
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)
