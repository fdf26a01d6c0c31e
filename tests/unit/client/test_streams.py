"""Streams on this computer: descriptors of every kind, a real terminal (a pty), memory, callbacks, and all over a socket."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import socket
import struct
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.client.ends import ControlQueue, DescriptorSink, DescriptorSource, QueueSource
from insula.client.streams import CallbackStreams, MemoryStreams, PipeStreams, TerminalStreams
from insula.errors import GuestError, Interrupted, UsageError
from insula.guest import wire
from insula.guest.execute import ExitStatus, execute
from insula.guest.link import Link
from insula.guest.wire import FrameReader
from insula.model.command import Command
from insula.model.streams import Control, Controls, Resize, Signal, Sink, Source


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """(what the user sees and types, the program's descriptor)"""
    user, program = pty.openpty()
    yield user, program
    os.close(user)
    os.close(program)


def ready(descriptor: int | None, events: int = select.POLLIN) -> bool:
    assert descriptor is not None
    poller = select.poll()
    poller.register(descriptor, events)
    return bool(poller.poll(0))


# -- descriptors ---------------------------------------------------------------------------------------------------------------
def test_sink_never_waits_for_a_full_pipe_and_leaves_its_flags_alone(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    sink = DescriptorSink(writer)
    taken = 0
    while count := sink.write(memoryview(bytes(1 << 20))):
        taken += count
    assert taken >= 4096
    assert not ready(sink.fileno(), select.POLLOUT)
    assert os.get_blocking(writer)
    os.read(reader, taken)
    assert ready(sink.fileno(), select.POLLOUT)
    sink.close()


def test_sink_tells_that_nobody_reads(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    sink = DescriptorSink(writer)
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        sink.write(memoryview(b"x"))
    sink.close()


def test_sink_on_a_socket_takes_small_pieces() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sink = DescriptorSink(ours.fileno())
        assert 0 < sink.write(memoryview(bytes(1 << 20))) <= 4096
        sink.close()


def test_sink_appends_to_a_file_without_waiting(tmp_path: Path) -> None:
    with open(tmp_path / "out", "ab") as file:
        sink = DescriptorSink(file.fileno())
        assert sink.fileno() is None
        assert sink.write(memoryview(b"all of it")) == 9
    assert (tmp_path / "out").read_bytes() == b"all of it"


def test_source_says_nothing_now_and_then_the_end(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    source = DescriptorSource(reader)
    assert source.read(10) is None
    os.write(writer, b"abc")
    assert (source.read(2), source.read(2)) == (b"ab", b"c")
    os.close(writer)
    assert source.read(10) == b""


def test_pipe_streams_do_without_what_is_closed(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    with PipeStreams(reader, None, writer) as streams:
        assert streams.stdin is None
        assert streams.stdout.write(memoryview(b"nowhere")) == 7


# -- signals -------------------------------------------------------------------------------------------------------------------
def test_signals_are_passed_on_and_handlers_put_back() -> None:
    former = signal.getsignal(signal.SIGTERM)
    with PipeStreams(None, None, None) as streams:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert ready(streams.controls.fileno())
        assert [streams.controls.take() for _ in range(3)] == [Signal("TERM"), Signal("INT"), None]
        assert not ready(streams.controls.fileno())
    assert signal.getsignal(signal.SIGTERM) is former


def press_ctrl_c(times: int) -> None:
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGINT)


def test_insisting_on_ctrl_c_ends_us() -> None:
    with PipeStreams(None, None, None):
        press_ctrl_c(2)
        with pytest.raises(Interrupted):
            press_ctrl_c(1)


def test_streams_work_outside_the_main_thread() -> None:
    failures: list[BaseException] = []

    def use() -> None:
        try:
            PipeStreams(None, None, None).close()
        except BaseException as failure:  # noqa: BLE001 - a thread's failure must reach the test
            failures.append(failure)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert failures == []


def test_control_queue_wakes_a_waiter_in_another_thread() -> None:
    queue = ControlQueue()
    thread = threading.Timer(0.01, queue.put, [Resize(1, 2)])
    thread.start()
    select.select([queue.fileno()], [], [], 5)
    assert queue.take() == Resize(1, 2)
    thread.join()
    queue.close()
    queue.put(Signal("INT"))  # too late, and harmless


# -- the terminal --------------------------------------------------------------------------------------------------------------
def set_size(descriptor: int, rows: int, columns: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def test_terminal_is_raw_meanwhile_and_as_before_afterwards(terminal: tuple[int, int]) -> None:
    user, program = terminal
    former = termios.tcgetattr(program)
    with TerminalStreams(program, program) as streams:
        assert not termios.tcgetattr(program)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
        os.write(user, b"\x03\x04q")
        assert ready(streams.stdin.fileno() if streams.stdin else None)
        assert streams.stdin is not None
        assert streams.stdin.read(10) == b"\x03\x04q"
        assert streams.stdout.write(memoryview(b"out")) == 3
        assert os.read(user, 10) == b"out"
    assert termios.tcgetattr(program) == former
    streams.close()


def test_terminal_is_restored_when_we_are_asked_to_end(terminal: tuple[int, int]) -> None:
    _, program = terminal
    former = termios.tcgetattr(program)
    with pytest.raises(Interrupted, match="SIGTERM"), TerminalStreams(program, program):
        os.kill(os.getpid(), signal.SIGTERM)
    assert termios.tcgetattr(program) == former


def test_window_size_follows(terminal: tuple[int, int]) -> None:
    _, program = terminal
    with TerminalStreams(program, program) as streams:
        assert streams.size == (24, 80)
        set_size(program, 50, 132)
        os.kill(os.getpid(), signal.SIGWINCH)
        assert streams.controls.take() == Resize(50, 132)


def test_terminal_is_raw_again_after_having_been_stopped(terminal: tuple[int, int]) -> None:
    _, program = terminal
    former = termios.tcgetattr(program)
    with TerminalStreams(program, program) as streams:
        termios.tcsetattr(program, termios.TCSANOW, former)  # what a shell does while we are stopped
        os.kill(os.getpid(), signal.SIGCONT)
        assert not termios.tcgetattr(program)[3] & termios.ICANON
        assert isinstance(streams.controls.take(), Resize)


def test_escape_key_leaves(terminal: tuple[int, int]) -> None:
    user, program = terminal
    with TerminalStreams(program, program, escape=b"\x1d") as streams:
        assert streams.stdin is not None
        os.write(user, b"last words\x1dlost")
        assert streams.stdin.read(100) == b"last words"
        with pytest.raises(Interrupted) as caught:
            streams.stdin.read(100)
    assert caught.value.code == "detached"


def test_no_terminal_is_a_usage_error(pipe: tuple[int, int]) -> None:
    with pytest.raises(UsageError) as caught:
        TerminalStreams(*pipe)
    assert caught.value.code == "not_a_terminal"


def test_a_terminal_that_hung_up_is_the_end_of_input() -> None:
    user, program = pty.openpty()
    with TerminalStreams(program, program) as streams:
        os.close(user)
        assert streams.stdin is not None
        assert streams.stdin.read(10) == b""
    os.close(program)


# -- memory and callbacks ----------------------------------------------------------------------------------------------------
def test_memory_keeps_output_up_to_its_limit() -> None:
    streams = MemoryStreams(b"input", limit=10)
    assert streams.stdin is not None
    assert [streams.stdin.read(3) for _ in range(3)] == [b"inp", b"ut", b""]
    streams.stdout.write(memoryview(b"0123456789"))
    streams.stderr.write(memoryview(b"e"))
    assert (streams.output, streams.errors) == (b"0123456789", b"e")
    with pytest.raises(GuestError) as caught:
        streams.stdout.write(memoryview(b"!"))
    assert caught.value.code == "output_too_large"


def test_queue_source_holds_its_feeder_back() -> None:
    source = QueueSource(limit=4)
    fed = threading.Event()

    def feed() -> None:
        source.feed(b"abcd")
        source.feed(b"ef")
        source.end()
        fed.set()

    thread = threading.Thread(target=feed)
    thread.start()
    select.select([source.fileno()], [], [], 5)
    got = source.read(4)
    assert fed.wait(5)
    assert (got, source.read(10), source.read(10)) == (b"abcd", b"ef", b"")
    thread.join()
    source.close()
    with pytest.raises(BrokenPipeError):
        source.feed(b"late")


def test_closing_frees_a_feeder_that_waits() -> None:
    source = QueueSource(limit=1)
    source.feed(b"full")
    outcome: list[str] = []

    def feed() -> None:
        try:
            source.feed(b"more")
        except BrokenPipeError:
            outcome.append("freed")

    thread = threading.Thread(target=feed)
    thread.start()
    source.close()
    thread.join(5)
    assert outcome == ["freed"]


# -- over a socket -----------------------------------------------------------------------------------------------------------
def test_a_terminal_here_and_one_in_the_guest(agent: Link, terminal: tuple[int, int]) -> None:
    """A person waits for a prompt, resizes the window, types a command and at last Ctrl-C; nobody types in between."""
    user, program = terminal
    set_size(program, 30, 100)
    seen = bytearray()

    def person() -> None:
        for awaited, typed in ((b"30 100\r\n", b"more\r"), (b"got more\r\n", b"\x03")):
            while awaited not in seen:
                seen.extend(os.read(user, 1000))
            os.write(user, typed)

    thread = threading.Thread(target=person)
    thread.start()
    with TerminalStreams(program, program) as streams:
        rows, columns = streams.size
        script = "stty size; read line; echo got $line; exec sleep 60"
        status = execute(agent, Command(["sh", "-c", script], tty=True, rows=rows, cols=columns), streams)
    thread.join()
    assert status == ExitStatus(0, "INT")


class CarriedStreams:
    """Streams whose other end is at the far side of a socket: what a server will do with a WebSocket."""

    def __init__(self, carrier: socket.socket) -> None:
        self._carrier = carrier
        self._reader = FrameReader()
        self._input = QueueSource()
        self._queue = ControlQueue()
        self.stdin: Source | None = self._input
        self.stdout: Sink = CarriedSink(carrier, wire.STDOUT)
        self.stderr: Sink = CarriedSink(carrier, wire.STDERR)
        self.controls: Controls = self._queue
        self.opened = threading.Event()
        self.request = wire.Fields()
        self._thread = threading.Thread(target=self._pump)
        self._thread.start()

    def _pump(self) -> None:
        while data := self._carrier.recv(65536):
            for frame in self._reader.feed(data):
                if frame.type == wire.OPEN:
                    self.request = wire.decode_fields(frame.payload)
                    self.opened.set()
                elif frame.type == wire.DATA:
                    self._input.feed(frame.payload)
                    self._carrier.sendall(
                        wire.encode_frame(wire.Frame(wire.CREDIT, frame.channel, wire.encode_credit(len(frame.payload))))
                    )
                elif frame.type == wire.EOF:
                    self._input.end()
                else:
                    self._queue.put(_control(frame))

    def close(self) -> None:
        self._carrier.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._input.close()
        self._queue.close()


class CarriedSink:
    def __init__(self, carrier: socket.socket, stream: int) -> None:
        self._carrier = carrier
        self._stream = stream

    def fileno(self) -> int:
        return self._carrier.fileno()

    def write(self, data: memoryview) -> int:
        self._carrier.sendall(wire.encode_frame(wire.Frame(wire.DATA, 1, bytes(data), self._stream)))
        return len(data)


def _control(frame: wire.Frame) -> Control:
    if frame.type == wire.SIGNAL:
        return Signal(frame.payload.decode())
    rows, columns = struct.unpack("<HH", frame.payload)
    return Resize(rows, columns)


def test_a_request_and_its_streams_travel_over_a_socket(agent: Link) -> None:
    """Caller ⇄ socket ⇄ server ⇄ agent: input, both outputs, a signal and the exit status arrive."""
    near, far = socket.socketpair()
    carried = CarriedStreams(far)
    statuses: list[ExitStatus] = []
    out, err = bytearray(), bytearray()

    def hear(data: bytes) -> None:
        out.extend(data)
        if out.endswith(b"ready\n"):
            caller.signal("TERM")

    def call() -> None:
        with Link(near) as link:
            statuses.append(execute(link, Command(["sh", "-c", script]), caller))

    script = "trap 'echo told >&2; exit 7' TERM; head -n 1; echo ready; read never"
    caller = CallbackStreams(hear, err.extend)
    caller.feed(b"given\n")
    thread = threading.Thread(target=call)
    thread.start()
    assert carried.opened.wait(5)
    status = execute(agent, Command([word.decode() for word in carried.request.raws("argv")]), carried)
    far.sendall(wire.encode_frame(wire.Frame(wire.RESULT, 1, wire.encode_fields([("code", status.code)]))))
    thread.join(5)
    carried.close()
    caller.close()
    far.close()
    assert statuses == [ExitStatus(7)]
    assert (bytes(out), bytes(err)) == (b"given\nready\n", b"told\n")
