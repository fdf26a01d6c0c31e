"""A link against a peer that the test plays: answers, errors, credit, and all the ways a peer may misbehave."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path

import pytest

from insula.errors import AgentAbsent, GuestError, MachineEnded
from insula.guest import wire
from insula.guest.link import open_link
from insula.guest.wire import Frame, FrameReader
from insula.host.sockets import connect_unix, is_listening, listen_unix
from tests.framework.peer import Peer


def answer(peer: Peer, **fields: wire.Value) -> int:
    """Take an OPEN and answer it; the channel's number."""
    frame = peer.read()
    assert frame.type == wire.OPEN
    peer.result(frame.channel, **fields)
    return frame.channel


def test_call_sends_verb_and_fields_and_returns_the_answer(peer: Peer) -> None:
    channel = peer.link.open("stat", [("path", "/a")], mode=3)
    opened = peer.read()
    assert list(wire.decode_fields(opened.payload)) == [("verb", "stat"), ("path", b"/a"), ("mode", 3)]
    peer.result(opened.channel, kind="f", size=5)
    assert channel.finish().number("size") == 5


def test_channel_numbers_are_never_used_twice(peer: Peer) -> None:
    numbers = set()
    for _ in range(20):
        channel = peer.link.open("ping")
        numbers.add(answer(peer))
        channel.finish()
    assert len(numbers) == 20


def test_answers_find_their_channel_in_any_order(peer: Peer) -> None:
    channels = [peer.link.open("ping") for _ in range(5)]
    numbers = [peer.read().channel for _ in channels]
    for number in reversed(numbers):
        peer.result(number, code=number)
    assert [channel.finish().number("code") for channel in channels] == numbers


@pytest.mark.parametrize(
    ("fields", "kind", "code"),
    [
        ({"error": "ENOENT", "path": b"/x"}, GuestError, "no_such_file"),
        ({"error": "EAGENT"}, AgentAbsent, "agent_absent"),
        ({"error": "ENDED", "reason": "panic"}, MachineEnded, "machine_ended"),
        ({"error": "ELIFE"}, GuestError, "guest_began_anew"),
        ({"error": "ESTRANGE", "message": "odd"}, GuestError, "guest_estrange"),
        ({"error": "\x1b[2J; rm"}, GuestError, "guest_unknown"),
    ],
)
def test_errors_become_exceptions_with_codes(peer: Peer, fields: dict[str, wire.Value], kind: type[Exception], code: str) -> None:
    channel = peer.link.open("stat")
    answer(peer, **fields)
    with pytest.raises(kind) as caught:
        channel.finish(subject="/x")
    assert getattr(caught.value, "code", None) == code
    assert "\x1b" not in str(caught.value)


def test_exec_errors_have_words_of_their_own(peer: Peer) -> None:
    channel = peer.link.open("exec", argv="nope")
    answer(peer, error="ENOENT")
    with pytest.raises(GuestError, match="no such command in the guest: nope") as caught:
        channel.finish(subject="nope")
    assert caught.value.code == "command_not_found"


def test_no_answer_in_time_gives_the_request_up(peer: Peer) -> None:
    with pytest.raises(GuestError, match="no answer to 'ping' in time"):
        peer.link.call("ping", timeout=0.02)
    assert [peer.read().type for _ in range(2)] == [wire.OPEN, wire.CLOSE]


def test_late_frames_of_a_closed_channel_are_ignored(peer: Peer) -> None:
    first = peer.link.open("ping")
    number = peer.read().channel
    first.close()
    assert peer.read().type == wire.CLOSE
    peer.send(wire.DATA, number, b"late", 1)
    peer.result(number)
    second = peer.link.open("ping")
    answer(peer)
    second.finish()
    assert first.take() is None


def test_lost_connection_is_machine_ended(peer: Peer) -> None:
    channel = peer.link.open("ping")
    peer.socket.close()
    with pytest.raises(MachineEnded) as caught:
        channel.finish()
    assert caught.value.code == "keeper_gone"
    channel.close()  # what comes after does no harm
    with pytest.raises(MachineEnded):
        peer.link.call("ping")


def test_answer_sent_before_hanging_up_counts(peer: Peer) -> None:
    channel = peer.link.open("ping")
    answer(peer, code=4)
    peer.socket.close()
    assert channel.finish().number("code") == 4


@pytest.mark.parametrize("garbage", [b"XX" + bytes(10), b"IN\x02\x01\x01\0\0\0\xff\xff\xff\xff"], ids=["magic", "length"])
def test_garbage_is_told(peer: Peer, garbage: bytes) -> None:
    channel = peer.link.open("ping")
    peer.socket.sendall(garbage)
    with pytest.raises(GuestError) as caught:
        channel.finish()
    assert caught.value.code == "garbled"


def test_unknown_frames_are_ignored(peer: Peer) -> None:
    channel = peer.link.open("ping")
    number = peer.read().channel
    peer.send(99, number, b"?")
    peer.send(wire.DATA, number, b"?", 9)
    peer.send(wire.DATA, 12345, b"?", 1)
    peer.result(number)
    assert list(channel.finish()) == []


def test_sender_stops_at_its_window_and_goes_on_with_credit(peer: Peer) -> None:
    channel = peer.link.open("put")
    number = peer.read().channel
    sent = got = 0
    while channel.room() or peer.link.clogged:
        sent += channel.send(bytes(channel.room()))
        got += len(peer.read().payload)
        peer.link.poll(timeout=0)
    while got < sent:
        got += len(peer.read().payload)
    assert sent == wire.WINDOW
    peer.send(wire.CREDIT, number, wire.encode_credit(10), 0)
    peer.link.poll()
    assert channel.send(bytes(100)) == 10


def test_write_sends_everything_in_order_while_the_peer_consumes(peer: Peer) -> None:
    data = os.urandom(3_000_000)
    got = bytearray()

    def consume() -> None:
        number = peer.read().channel
        while len(got) < len(data):
            frame = peer.read()
            got.extend(frame.payload)
            peer.send(wire.CREDIT, number, wire.encode_credit(len(frame.payload)), 0)
        peer.result(number)

    thread = threading.Thread(target=consume)
    thread.start()
    channel = peer.link.open("put")
    assert channel.write(data)
    channel.finish(5)
    thread.join()
    assert got == data


def test_write_gives_up_when_the_answer_comes_first(peer: Peer) -> None:
    channel = peer.link.open("put")
    answer(peer, error="ENOSPC", path=b"/x")
    peer.socket.settimeout(None)
    assert not channel.write(bytes(wire.WINDOW * 2))
    with pytest.raises(GuestError, match="no space left on the guest's disk: /x"):
        channel.finish()


def test_credit_is_given_only_for_what_was_taken(peer: Peer) -> None:
    channel = peer.link.open("get")
    number = peer.read().channel
    for _ in range(wire.WINDOW // 65536):
        peer.send(wire.DATA, number, bytes(65536), 1)
        peer.link.poll()
    assert channel.take() == (1, bytes(65536))
    peer.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        peer.read()
    channel.take()
    credit = peer.read()
    assert (credit.type, credit.stream, wire.decode_credit(credit.payload)) == (wire.CREDIT, 1, wire.WINDOW // 2)


def test_peer_that_overruns_its_window_is_cut_off(peer: Peer) -> None:
    peer.link.open("get")
    number = peer.read().channel
    for _ in range(wire.WINDOW // 65536):
        peer.send(wire.DATA, number, bytes(65536), 1)
        peer.link.poll()
    peer.send(wire.DATA, number, b"1", 1)
    with pytest.raises(GuestError, match="more data than was allowed"):
        peer.link.poll()
    assert peer.read().type == wire.CLOSE


def test_end_of_stream_is_told_once_and_nothing_after_it(peer: Peer) -> None:
    channel = peer.link.open("get")
    number = peer.read().channel
    peer.send(wire.DATA, number, b"a", 1)
    for _ in range(3):
        peer.send(wire.EOF, number, stream=1)
    peer.send(wire.DATA, number, b"late", 1)
    peer.result(number)
    assert list(channel) == [(1, b"a"), (1, b"")]


def test_credit_beyond_the_largest_window_is_dropped(peer: Peer) -> None:
    channel = peer.link.open("put")
    number = peer.read().channel
    for _ in range(3):
        peer.send(wire.CREDIT, number, wire.encode_credit(2**32 - 1), 0)
        peer.link.poll()
    assert channel._window[0] == wire.WINDOW_MAX


def test_open_link_reaches_a_socket_whose_path_is_too_long(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100) / ("y" * 100)
    folder.mkdir(parents=True)
    here = os.open(folder, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{here}/keeper.sock")
        os.close(here)
        listener.listen()
        with open_link(folder) as link:
            accepted, _ = listener.accept()
            with accepted:
                link.open("ping")
                assert accepted.recv(2) == b"IN"


def test_a_keeper_that_says_nothing_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("insula.guest.link._FIRST_WORD", 0.05)
    with listen_unix(tmp_path / "keeper.sock"), open_link(tmp_path) as link, pytest.raises(GuestError) as caught:
        link.call("exec", argv="true")
    assert caught.value.code == "keeper_silent"


def test_a_keeper_that_spoke_once_may_be_silent_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("insula.guest.link._FIRST_WORD", 0.05)
    with listen_unix(tmp_path / "keeper.sock") as listener, open_link(tmp_path) as link:
        channel = link.open("exec", argv="true")
        accepted, _ = listener.accept()
        with accepted:
            greeting = FrameReader().feed(accepted.recv(65536))[0]
            accepted.sendall(wire.encode_frame(Frame(wire.RESULT, greeting.channel, b"")))
            link.poll()
            late = Frame(wire.RESULT, greeting.channel + 1, wire.encode_fields([("code", 7)]))
            timer = threading.Timer(0.15, accepted.sendall, (wire.encode_frame(late),))
            timer.start()
            assert channel.finish().number("code") == 7
            timer.join()


_USELESS = {
    "data of channels that never were": Frame(wire.DATA, 1 << 20, bytes(65536), 1),
    "ends of channels that never were": Frame(wire.EOF, 1 << 20, b"", 1),
    "credit that is full": Frame(wire.CREDIT, 1, wire.encode_credit(wire.WINDOW_MAX), 0),
    "no credit": Frame(wire.CREDIT, 1, wire.encode_credit(0), 0),
    "nothing": Frame(wire.DATA, 1, b"", 1),
    "an end and an end": Frame(wire.EOF, 1, b"", 1),
    "data after the end": Frame(wire.DATA, 1, bytes(65536), 2),
    "a stream that is none": Frame(wire.DATA, 1, bytes(65536), 9),
    "a type that is none": Frame(99, 1, bytes(65536)),
}


@pytest.mark.parametrize("useless", _USELESS)
def test_a_keeper_that_sends_to_no_avail_is_not_waited_for_without_end(peer: Peer, useless: str) -> None:
    channel = peer.link.open("exec", argv="true")
    number = peer.read().channel
    peer.send(wire.EOF, number, stream=2)
    many = wire.encode_frame(_USELESS[useless])
    many *= 1 + (1 << 18) // len(many)

    def flood() -> None:
        with contextlib.suppress(OSError):
            while True:
                peer.socket.sendall(many)

    sender = threading.Thread(target=flood)
    sender.start()
    with pytest.raises(GuestError) as caught:
        channel.finish()
    sender.join()
    assert caught.value.code == "keeper_floods"


def _opened(peer: Peer) -> wire.Frame:
    """The next OPEN, behind whatever else is on the way; a link sends only while it is called."""
    while True:
        peer.link.poll(timeout=0)
        if (frame := peer.read()).type == wire.OPEN:
            return frame


def _flood(peer: Peer, number: int) -> None:
    for _ in range(16):
        peer.send(wire.DATA, number, bytes(65536), 1)


def test_what_is_still_under_way_when_channels_end_is_no_flood(peer: Peer) -> None:
    """A window of each of their streams, as a keeper that knows nothing of our CLOSE yet may have sent it."""
    for _ in range(8):
        channel = peer.link.open("exec", argv="yes")
        number = _opened(peer).channel
        channel.widen(1)
        channel.close()
        sender = threading.Thread(target=_flood, args=(peer, number))
        sender.start()
        while sender.is_alive():
            peer.link.poll(timeout=0.05)
        sender.join()
        while peer._frames:
            peer._frames.popleft()
    channel = peer.link.open("ping")
    peer.result(_opened(peer).channel)
    channel.finish(10)


def test_pieces_of_bulk_come_in_order_and_nothing_else_among_them(peer: Peer) -> None:
    channel = peer.link.open("get", path="/x")
    number = _opened(peer).channel
    sent = [bytes([index]) * (1 + 997 * index) for index in range(60)]  # more than the memory they are received into

    def answer_it() -> None:
        for piece in sent:
            peer.send(wire.DATA, number, piece, 1)
            peer.send(wire.DATA, number, b"noise", 2)
        peer.send(wire.EOF, number, b"", 1)
        peer.result(number, code=0)

    sender = threading.Thread(target=answer_it)
    sender.start()
    assert [bytes(piece) for piece in channel.pieces()] == sent
    sender.join()
    assert channel.finish(10).number("code") == 0


def test_a_piece_not_asked_for_yet_survives_what_is_received_for_others(peer: Peer) -> None:
    """Memory that was lent is used again at the next receive."""
    bulk, other = peer.link.open("get", path="/x"), peer.link.open("ping")
    first, second = _opened(peer).channel, _opened(peer).channel
    for letter in b"abc":
        peer.send(wire.DATA, first, bytes([letter]) * 5_000, 1)
    pieces = bulk.pieces()
    came = [bytes(next(pieces))]
    for letter in b"xyz":
        peer.send(wire.DATA, second, bytes([letter]) * 5_000, 1)
    peer.result(second)
    other.finish(10)
    peer.result(first)
    came += [bytes(piece) for piece in pieces]
    assert came == [bytes([letter]) * 5_000 for letter in b"abc"]


def test_pieces_beyond_what_was_allowed_are_refused(peer: Peer) -> None:
    channel = peer.link.open("get", path="/x")
    number = _opened(peer).channel
    pieces = channel.pieces()

    def flood() -> None:
        with contextlib.suppress(OSError):  # it is hung up on
            for _ in range(wire.WINDOW_MAX // wire.PAYLOAD_MAX + 1):
                peer.send(wire.DATA, number, bytes(wire.PAYLOAD_MAX), 1)

    sender = threading.Thread(target=flood)
    sender.start()
    next(pieces)
    with pytest.raises(GuestError) as caught:
        while True:
            peer.link.poll(timeout=5)  # nobody takes what came
    assert caught.value.code == "garbled"
    peer.link.close()
    sender.join()


def test_a_keeper_that_has_no_room_says_so(peer: Peer) -> None:
    channel = peer.link.open("exec", argv="true")
    peer.result(0, error="EBUSY")
    peer.socket.close()
    with pytest.raises(GuestError) as caught:
        channel.finish()
    assert caught.value.code == "keeper_busy"


def test_a_keeper_that_lets_nobody_in_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("insula.guest.link._ROOM", 1e-9)
    with listen_unix(tmp_path / "keeper.sock", backlog=0), connect_unix(tmp_path / "keeper.sock"):
        assert is_listening(tmp_path / "keeper.sock")
        with pytest.raises(GuestError) as caught:
            open_link(tmp_path)
    assert caught.value.code == "keeper_silent"


@pytest.mark.parametrize("waiting", [0, 100])
def test_sending_to_a_peer_that_is_gone_is_told_when_reading(peer: Peer, waiting: int) -> None:
    """What waits in line, however much, must not hide that the other side left."""
    channel = peer.link.open("put")
    while waiting and not peer.link.clogged:
        peer.link.send_data(1, 0, memoryview(bytes(wire.PAYLOAD_MAX)))
    for _ in range(waiting):
        channel.signal("INT")
    peer.socket.close()
    with pytest.raises(MachineEnded) as caught:
        peer.link.call("keeper.quit", how="kill")
    assert caught.value.code == "keeper_gone"


@pytest.mark.parametrize("left", ["nothing", "folder", "socket"])
def test_open_link_says_not_running(tmp_path: Path, left: str) -> None:
    folder = tmp_path / "run"
    if left != "nothing":
        folder.mkdir()
    if left == "socket":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(os.fspath(folder / "keeper.sock"))
    with pytest.raises(MachineEnded) as caught:
        open_link(folder)
    assert caught.value.code == "not_running"
