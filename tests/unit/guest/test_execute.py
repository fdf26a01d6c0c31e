"""Programs in a guest: a real agent serves them here, as an ordinary process of this computer."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from insula.client.streams import CallbackStreams, MemoryStreams, PipeStreams
from insula.errors import GuestError, MachineEnded
from insula.guest import wire
from insula.guest.execute import ExitStatus, execute
from insula.guest.link import Link
from insula.model.command import Command
from tests.framework.peer import Peer


def run(agent: Link, script: str, stdin: bytes | None = None) -> tuple[ExitStatus, bytes, bytes]:
    streams = MemoryStreams(stdin)
    status = execute(agent, Command(["sh", "-c", script]), streams)
    return status, streams.output, streams.errors


def test_output_errors_and_code_come_back(agent: Link) -> None:
    assert run(agent, "echo out; echo err >&2; exit 3") == (ExitStatus(3), b"out\n", b"err\n")


def test_a_signal_is_told_by_name_and_counts_as_in_a_shell(agent: Link) -> None:
    status, _, _ = run(agent, "kill -KILL $$")
    assert status == ExitStatus(0, "KILL")
    assert status.shell_code == 137


def test_input_reaches_the_program_and_ends(agent: Link) -> None:
    data = os.urandom(1_500_000)
    status, output, _ = run(agent, "cat", data)
    assert status == ExitStatus(0)
    assert output == data


def test_closed_input_is_at_its_end(agent: Link) -> None:
    assert run(agent, "cat; echo done") == (ExitStatus(0), b"done\n", b"")


def test_input_nobody_reads_does_not_matter(agent: Link) -> None:
    assert run(agent, "exit 5", bytes(2_000_000))[0] == ExitStatus(5)


def test_bytes_that_are_no_text_pass_unchanged(agent: Link) -> None:
    assert run(agent, r"printf '\377\000\033['")[1] == b"\xff\x00\x1b["


def test_environment_folder_and_user(agent: Link, tmp_path: Path) -> None:
    streams = MemoryStreams()
    script = 'echo "$GIVEN $(pwd) $(id -u)"'
    execute(agent, Command(["sh", "-c", script], env=["GIVEN=a b"], cwd=os.fspath(tmp_path), user=str(os.getuid())), streams)
    assert streams.output.decode() == f"a b {tmp_path} {os.getuid()}\n"


@pytest.mark.parametrize(
    ("argv", "options", "code", "message"),
    [
        (["no-such-program"], {}, "command_not_found", "no such command in the guest: no-such-program"),
        (["/etc/passwd"], {}, "command_not_executable", "not executable in the guest: /etc/passwd"),
        (["true"], {"cwd": "/no/where"}, "no_such_folder", "no such folder in the guest: /no/where"),
        (["true"], {"user": "nobody-at-all"}, "no_such_user", "no such user in the guest: nobody-at-all"),
    ],
)
def test_what_cannot_be_run_is_told(agent: Link, argv: list[str], options: dict[str, str], code: str, message: str) -> None:
    with pytest.raises(GuestError) as caught:
        execute(agent, Command(argv, cwd=options.get("cwd", ""), user=options.get("user", "")), MemoryStreams())
    assert (caught.value.code, str(caught.value)) == (code, message)


def test_signals_reach_the_program(agent: Link) -> None:
    streams = CallbackStreams(lambda data: streams.signal("INT"))
    status = execute(agent, Command(["sh", "-c", "trap 'exit 42' INT; echo ready; read never"]), streams)
    streams.close()
    assert status == ExitStatus(42)


def test_terminal_has_the_size_and_follows_it(agent: Link) -> None:
    heard = bytearray()

    def hear(data: bytes) -> None:
        heard.extend(data)
        if heard.endswith(b"30 100\r\n"):
            streams.resize(40, 120)

    streams = CallbackStreams(hear)
    script = "trap 'stty size; exit 0' WINCH; stty size; read never"
    status = execute(agent, Command(["sh", "-c", script], tty=True, rows=30, cols=100), streams)
    streams.close()
    assert (status, bytes(heard)) == (ExitStatus(0), b"30 100\r\n40 120\r\n")


def test_ctrl_c_typed_in_a_terminal(agent: Link) -> None:
    streams = CallbackStreams(lambda data: streams.feed(b"\x03") if b"ready" in data else None)
    status = execute(agent, Command(["sh", "-c", "echo ready; exec sleep 60"], tty=True), streams)
    streams.close()
    assert status == ExitStatus(0, "INT")


def test_input_that_stays_silent_holds_nothing_up(agent: Link) -> None:
    """As at a terminal: output flows, signals pass and the program ends while nobody types."""
    silent, typist = os.pipe()
    reader, writer = os.pipe()
    with PipeStreams(silent, writer, None, signals=()) as streams:
        status = execute(agent, Command(["sh", "-c", "echo one; sleep 0.05; echo two; exit 6"]), streams)
    assert (status, os.read(reader, 100)) == (ExitStatus(6), b"one\ntwo\n")
    for descriptor in (silent, typist, reader, writer):
        os.close(descriptor)


def test_slow_reader_holds_the_program_back(agent: Link) -> None:
    """A pipe that nobody empties must stop the flow; once it is emptied all comes, in order."""
    reader, writer = os.pipe()
    got = bytearray()
    started = threading.Event()

    def drain() -> None:
        started.wait(5)
        while data := os.read(reader, 65536):
            got.extend(data)

    thread = threading.Thread(target=drain)
    thread.start()
    streams = PipeStreams(None, writer, None, signals=())
    threading.Timer(0.1, started.set).start()
    status = execute(agent, Command(["sh", "-c", "head -c 3000000 /dev/zero; echo end"]), streams)
    streams.close()
    os.close(writer)
    thread.join()
    os.close(reader)
    assert status == ExitStatus(0)
    assert bytes(got) == bytes(3_000_000) + b"end\n"


def test_a_reader_that_goes_away_hangs_the_program_up(agent: Link) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with PipeStreams(None, writer, None, signals=()) as streams:
        status = execute(agent, Command(["yes"]), streams)
    os.close(writer)
    assert (status, status.shell_code) == (ExitStatus(0, "PIPE"), 141)
    assert run(agent, "echo the link still works")[1] == b"the link still works\n"


def test_an_exception_in_a_callback_hangs_the_program_up(agent: Link, tmp_path: Path) -> None:
    """The program gets SIGHUP and can say so; the link stays usable."""
    mark = tmp_path / "mark"

    def fail(_: bytes) -> None:
        raise KeyboardInterrupt

    streams = CallbackStreams(fail)
    os.mkfifo(mark)
    with pytest.raises(KeyboardInterrupt):
        execute(agent, Command(["sh", "-c", f"trap 'echo hung >{mark}; exit' HUP; echo ready; sleep 60 & wait"]), streams)
    streams.close()
    assert mark.read_bytes() == b"hung\n"
    assert run(agent, "exit 4")[0] == ExitStatus(4)


def test_many_programs_at_once_over_one_link(agent: Link) -> None:
    channels = [agent.open("exec", argv=["sh", "-c", f"echo {number}; exit {number}"]) for number in range(8)]
    outputs = [b"".join(data for stream, data in channel if stream == wire.STDOUT) for channel in channels]
    assert outputs == [b"%d\n" % number for number in range(8)]
    assert [channel.finish().number("code") for channel in channels] == list(range(8))


def test_losing_the_machine_in_the_middle_is_told(peer: Peer) -> None:
    streams = CallbackStreams(lambda _: peer.socket.close())
    peer.send(wire.DATA, 1, b"something", wire.STDOUT)
    with pytest.raises(MachineEnded):
        execute(peer.link, Command(["cat"]), streams)
    streams.close()


def test_output_before_the_answer_is_delivered_first(peer: Peer) -> None:
    peer.send(wire.DATA, 1, b"last words", wire.STDOUT)
    peer.result(1, code=9)
    streams = MemoryStreams()
    assert execute(peer.link, Command(["cat"]), streams) == ExitStatus(9)
    assert streams.output == b"last words"
    opened = wire.decode_fields(peer.read().payload)
    assert list(opened) == [("verb", "exec"), ("argv", b"cat")]


def test_request_carries_what_was_asked(peer: Peer) -> None:
    peer.result(1, code=0)
    command = Command(["a", "b"], env=["K=V"], cwd="/tmp", user="anna", tty=True, rows=9, cols=8, wait=1.5)
    execute(peer.link, command, MemoryStreams())
    assert list(wire.decode_fields(peer.read().payload)) == [
        ("verb", "exec"), ("argv", b"a"), ("argv", b"b"), ("env", b"K=V"), ("cwd", b"/tmp"), ("user", "anna"),
        ("tty", 1), ("rows", 9), ("cols", 8), ("wait_ms", 1500),
    ]  # fmt: skip


@pytest.mark.parametrize(("signal", "code"), [("TERM", 143), ("64", 128), ("", 128), ("def", 128)])
def test_shell_code_of_odd_signals(signal: str, code: int) -> None:
    status = ExitStatus(0, signal)
    assert status.shell_code == (code if signal else 0)
