"""The keeper between local clients and the agent: lives, channels, credit, and nobody who can hurt anybody else."""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from insula.errors import AgentAbsent, GuestError
from insula.guest import keeper, wire
from insula.guest.wire import Fields, Frame
from insula.host.native import native_path
from tests.unit.native.rig import HELLO, RawClient, Rig


def opened(rig: Rig) -> Frame:
    frame = rig.agent.read()
    assert frame.type == wire.OPEN
    return frame


# -- lives ----------------------------------------------------------------------------------------------------------------
def test_a_port_that_is_open_already_is_greeted(rig: Rig) -> None:
    rig.live()
    hello = keeper.wait_agent(rig.link(), 10)
    assert (hello.number("version"), hello.text("hostname"), hello.text("state")) == (1, "web", "running")
    assert "argv" not in hello  # what is no part of a hello goes no further
    assert rig.record("status")["agent"] is True


def test_a_port_that_opens_is_greeted(rig: Rig) -> None:
    rig.greet()
    waiting = rig.link().open("keeper.wait", until="agent", wait_ms=10_000)
    rig.event("VSERPORT_CHANGE", open=True, id="another")
    rig.event("VSERPORT_CHANGE", open=True, id="agent0")
    rig.agent.live()
    assert waiting.finish(10).number("version") == 1


def test_a_late_answer_to_an_earlier_sync_is_passed_over(rig: Rig) -> None:
    rig.greet(agent_open=True)
    first = rig.agent.nonce()
    second = rig.agent.nonce()  # a second later
    assert first != second
    rig.agent.answer(first)
    rig.agent.answer(second)
    channel = rig.link().open("ping", wait_ms=10_000)
    rig.agent.result(opened(rig).channel)
    channel.finish(10)
    assert rig.events().count("AGENT") == 1


@pytest.mark.parametrize("noise", [b"", bytes(70_000), b"IN\x07\0\1\0\0\0\0\0\0\0", wire.SYNC_MARK, wire.SYNC_MARK + bytes(24)])
def test_what_comes_before_the_answer_is_dropped(rig: Rig, noise: bytes) -> None:
    rig.greet(agent_open=True)
    nonce = rig.agent.nonce()
    rig.agent.port.sendall(noise)
    rig.agent.answer(nonce)
    assert keeper.wait_agent(rig.link(), 10).number("version") == 1


def test_an_answer_in_pieces(rig: Rig) -> None:
    rig.greet(agent_open=True)
    whole = wire.SYNC_MARK + rig.agent.nonce() + b"\1\0\0\0" + len(HELLO).to_bytes(4, "little") + HELLO
    for at in range(len(whole)):
        rig.agent.port.sendall(whole[at : at + 1])
    assert keeper.wait_agent(rig.link(), 10).text("arch") == "amd64"


@pytest.mark.parametrize(("version", "fields"), [(0, HELLO), (2, HELLO), (1, b"\1\0\xff\xff\xff\xffx")])
def test_an_agent_we_cannot_speak_with(rig: Rig, version: int, fields: bytes) -> None:
    rig.greet(agent_open=True)
    rig.agent.answer(rig.agent.nonce(), version, fields)
    link = rig.link()
    with pytest.raises(AgentAbsent):
        link.call("ping", wait_ms=50, timeout=10)
    assert keeper.status(link).agent is None
    rig.event("VSERPORT_CHANGE", open=False, id="agent0")
    rig.event("VSERPORT_CHANGE", open=True, id="agent0")  # an upgraded one
    rig.agent.live()
    assert keeper.wait_agent(link, 10).number("version") == 1


def end_by_port(rig: Rig) -> None:
    rig.event("VSERPORT_CHANGE", open=False, id="agent0")


def end_by_garbage(rig: Rig) -> None:
    rig.agent.port.sendall(b"\0")


def end_by_new_port(rig: Rig) -> None:
    rig.event("VSERPORT_CHANGE", open=True, id="agent0")  # closed and opened within QEMU's second


@pytest.mark.parametrize("end", [end_by_port, end_by_garbage, end_by_new_port])
def test_a_life_that_ends_takes_its_channels(rig: Rig, end) -> None:
    rig.live()
    link = rig.link()
    channel = link.open("exec", argv=[b"true"])
    first = opened(rig).channel
    end(rig)
    with pytest.raises(GuestError) as caught:
        channel.finish(10)
    assert caught.value.code == "guest_began_anew"
    rig.event("VSERPORT_CHANGE", open=True, id="agent0")
    nonce = rig.agent.nonce()
    rig.agent.result(first, code=1)  # of the former life
    rig.agent.answer(nonce)
    channel = link.open("exec", argv=[b"true"], wait_ms=10_000)
    second = opened(rig).channel
    assert second != first
    rig.agent.result(first, code=2)
    rig.agent.result(second, code=3)
    assert channel.finish(10).number("code") == 3


def test_without_an_agent_a_verb_waits_as_long_as_it_says(rig: Rig) -> None:
    rig.greet()
    link = rig.link()
    with pytest.raises(AgentAbsent):
        link.call("ping", timeout=10)
    with pytest.raises(AgentAbsent):
        link.call("ping", wait_ms=30, timeout=10)


def test_what_was_sent_while_waiting_arrives_in_order(rig: Rig) -> None:
    rig.greet()
    link = rig.link()
    channel = link.open("exec", argv=[b"cat"], wait_ms=10_000)
    channel.write(b"one")
    channel.write(b"two")
    channel.eof()
    link.call("keeper.status", timeout=60)
    rig.event("VSERPORT_CHANGE", open=True, id="agent0")
    rig.agent.live()
    number = opened(rig).channel
    assert [(f.type, f.channel, f.payload) for f in (rig.agent.read(), rig.agent.read(), rig.agent.read())] == [
        (wire.DATA, number, b"one"),
        (wire.DATA, number, b"two"),
        (wire.EOF, number, b""),
    ]


def test_closing_while_waiting_is_seen_by_nobody(rig: Rig) -> None:
    rig.greet(agent_open=True)
    link = rig.link()
    link.open("exec", argv=[b"rm"], wait_ms=10_000).close()
    channel = link.open("ping", wait_ms=10_000)
    link.call("keeper.status", timeout=60)
    rig.agent.live()
    assert wire.decode_fields(opened(rig).payload).text("verb") == "ping"
    assert channel.result is None


# -- many clients ------------------------------------------------------------------------------------------------------------
def test_clients_with_the_same_numbers_are_told_apart(rig: Rig) -> None:
    rig.live()
    links = [rig.link() for _ in range(20)]
    channels = [link.open("exec", argv=[b"%d" % i]) for i, link in enumerate(links)]
    asked = [opened(rig) for _ in links]
    assert len({frame.channel for frame in asked}) == 20
    for frame in reversed(asked):
        name = wire.decode_fields(frame.payload).raw("argv")
        rig.agent.send(wire.DATA, frame.channel, b"I am " + name, wire.STDOUT)
        rig.agent.result(frame.channel, code=int(name))
    for i, channel in enumerate(channels):
        assert channel.next(10) == (wire.STDOUT, b"I am %d" % i)
        assert channel.finish(10).number("code") == i


def test_everything_an_opener_may_send_is_passed_on(rig: Rig) -> None:
    rig.live()
    channel = rig.link().open("exec", argv=[b"vi"], tty=1)
    number = opened(rig).channel
    channel.write(b"x")
    channel.resize(24, 80)
    channel.signal("INT")
    channel.eof()
    got = [rig.agent.read() for _ in range(4)]
    assert [frame.type for frame in got] == [wire.DATA, wire.RESIZE, wire.SIGNAL, wire.EOF]
    assert {frame.channel for frame in got} == {number}
    channel.close()
    assert rig.agent.read().type == wire.CLOSE


def test_a_client_that_dies_is_hung_up(rig: Rig) -> None:
    rig.live()
    link = rig.link()
    link.open("exec", argv=[b"sleep"])
    number = opened(rig).channel
    link.close()
    frame = rig.agent.read()
    assert (frame.type, frame.channel) == (wire.CLOSE, number)


def test_more_channels_than_there_are(rig: Rig) -> None:
    rig.live()
    client = rig.raw()
    for number in range(1, 258):
        client.open(number, "keeper.wait", until="end")
    assert client.result(257).text("error") == "EAGAIN"
    client.send(wire.CLOSE, 1)
    client.open(258, "keeper.status")
    assert client.result(258).text("state") == "running"


def test_more_clients_than_there_is_room_for_are_told_so_at_once(rig: Rig) -> None:
    rig.greet()
    clients = [rig.raw() for _ in range(64)]
    for client in clients:
        client.open(1, "keeper.status")
        assert client.result(1).text("state") == "running"
    for _ in range(3):
        stranger = rig.raw()
        assert stranger.result(0).text("error") == "EBUSY"
        assert stranger.read() is None
    with rig.link() as link, pytest.raises(GuestError) as error:
        link.call("keeper.status", timeout=60)
    assert error.value.code == "keeper_busy"
    for round_ in (2, 3):  # whoever is inside is still served, and who leaves makes room
        clients[1].open(round_, "keeper.status")
        assert clients[1].result(round_).text("state") == "running"
        clients[0].socket.close()
        clients[0] = rig.raw()
        clients[0].open(1, "keeper.status")
        assert clients[0].result(1).text("state") == "running"


def test_one_who_does_not_read_holds_up_nobody(rig: Rig) -> None:
    rig.live()
    lazy, link = rig.raw(), rig.link()
    lazy.open(1, "exec")
    number = opened(rig).channel
    for _ in range(4):
        rig.agent.send(wire.DATA, number, bytes(65536), wire.STDOUT)
        rig.agent.send(wire.DATA, number, bytes(65536), wire.STDERR)
    channel = link.open("ping")
    rig.agent.result(opened(rig).channel, data=b"pong")
    assert channel.finish(10).raw("data") == b"pong"
    got = 0
    while got < 8 * 65536:
        frame = lazy.read()
        assert frame is not None
        got += len(frame.payload)


def send_until_full(client: RawClient, data: Iterable[bytes]) -> None:
    """Send until the keeper takes no more for a while."""
    client.socket.settimeout(0.05)
    with pytest.raises(TimeoutError):
        client.socket.sendall(b"".join(itertools.islice(data, 1000)))


@pytest.mark.root  # the keeper lets no ordinary user look at its memory
def test_a_guest_that_does_not_read_holds_up_only_its_own(rig: Rig) -> None:
    rig.live()
    client = rig.raw()
    fields = wire.encode_fields([("verb", "exec"), ("argv", b"x" * 60_000)])
    send_until_full(client, (wire.encode_frame(Frame(wire.OPEN, number, fields)) for number in range(1, 100)))
    assert keeper.status(rig.link()).state == "running"
    assert resident(rig) < 1500
    client.socket.close()
    assert keeper.status(rig.link()).state == "running"


def comes_to_rest(rig: Rig) -> None:
    """The keeper gives its buffers back when nothing happened for a moment."""
    deadline = time.monotonic() + 60
    while resident(rig) >= 300:
        assert time.monotonic() < deadline, f"{resident(rig)} KiB are still held"
        time.sleep(0.02)


def resident(rig: Rig) -> int:
    """KiB of memory the keeper has written to."""
    text = Path(f"/proc/{rig.process.pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_Dirty"))


@pytest.mark.root  # the keeper lets no ordinary user look at its memory
def test_memory_is_given_back(rig: Rig) -> None:
    rig.live()
    client = rig.raw()
    client.open(1, "exec")
    number = opened(rig).channel
    for _ in range(4):
        rig.agent.send(wire.DATA, number, bytes(65536), wire.STDOUT)
    assert keeper.status(rig.link()).state == "running"
    for _ in range(4):
        frame = client.read()
        assert frame is not None
        assert len(frame.payload) == 65536
    rig.status()
    comes_to_rest(rig)


@pytest.mark.root  # the keeper lets no ordinary user look at its memory
def test_too_much_for_one_who_does_not_read_costs_only_that_one(rig: Rig) -> None:
    """However much a client allows to be sent, what waits for it is bounded; past that it is dropped."""
    rig.live()
    lazy, link = rig.raw(), rig.link()
    for channel in range(1, 81):
        lazy.open(channel, "exec")
        lazy.send(wire.CREDIT, channel, wire.encode_credit(wire.WINDOW_MAX), wire.STDOUT)
    numbers = [frame.channel for frame in (rig.agent.read() for _ in range(160)) if frame.type == wire.OPEN]
    for number in numbers:
        for _ in range(16):
            rig.agent.send(wire.DATA, number, bytes(65536), wire.STDOUT)
    assert {(frame.type, frame.channel) for frame in (rig.agent.read() for _ in numbers)} == {(wire.CLOSE, n) for n in numbers}
    ping = link.open("ping")
    rig.agent.result(opened(rig).channel)
    ping.finish(10)
    comes_to_rest(rig)


# -- credit ----------------------------------------------------------------------------------------------------------------
def test_an_agent_that_overruns_is_cut_off(rig: Rig) -> None:
    rig.live()
    channel = rig.link().open("exec", argv=[b"yes"])
    number = opened(rig).channel
    for _ in range(4):
        rig.agent.send(wire.DATA, number, bytes(65536), wire.STDOUT)
    rig.agent.send(wire.DATA, number, b"!", wire.STDOUT)
    frame = rig.agent.read()
    while frame.type == wire.CREDIT:
        frame = rig.agent.read()
    assert (frame.type, frame.channel) == (wire.CLOSE, number)
    with pytest.raises(GuestError) as caught:
        channel.finish(10)
    assert caught.value.code == "garbled"


def test_a_client_that_overruns_is_cut_off(rig: Rig) -> None:
    rig.live()
    client = rig.raw()
    client.open(1, "exec")
    number = opened(rig).channel
    for _ in range(4):
        client.send(wire.DATA, 1, bytes(65536))
        assert rig.agent.read().type == wire.DATA
    client.send(wire.DATA, 1, b"!")
    assert client.result(1).text("error") == "EPROTO"
    frame = rig.agent.read()
    assert (frame.type, frame.channel) == (wire.CLOSE, number)


def test_credit_goes_end_to_end(rig: Rig) -> None:
    rig.live()
    client = rig.raw()
    client.open(1, "exec")
    number = opened(rig).channel
    client.send(wire.CREDIT, 1, wire.encode_credit(1000), wire.STDERR)
    frame = rig.agent.read()
    assert (frame.type, frame.channel, frame.stream, frame.payload) == (wire.CREDIT, number, 2, wire.encode_credit(1000))
    rig.agent.send(wire.CREDIT, number, wire.encode_credit(2000))
    assert client.read() == Frame(wire.CREDIT, 1, wire.encode_credit(2000), 0)


@pytest.mark.parametrize("size", [1 << 22, 0xFFFFFFFF])
def test_credit_is_clamped(rig: Rig, size: int) -> None:
    rig.live()
    client = rig.raw()
    client.open(1, "exec")
    number = opened(rig).channel
    client.send(wire.CREDIT, 1, wire.encode_credit(size), wire.STDOUT)
    client.send(wire.CREDIT, 1, wire.encode_credit(size), wire.STDOUT)  # nothing is left to give
    client.send(wire.SIGNAL, 1, b"INT")
    most = wire.encode_credit(wire.WINDOW_MAX - wire.WINDOW)
    assert rig.agent.read() == Frame(wire.CREDIT, number, most, 1)
    assert rig.agent.read().type == wire.SIGNAL
    rig.agent.send(wire.CREDIT, number, wire.encode_credit(size))
    rig.agent.send(wire.CREDIT, number, wire.encode_credit(size))
    rig.agent.result(number)
    assert client.read() == Frame(wire.CREDIT, 1, most, 0)
    assert client.result(1) == Fields()


@pytest.mark.parametrize(
    ("kind", "stream", "payload"),
    [(wire.DATA, 0, b"x"), (wire.DATA, 3, b"x"), (wire.DATA, 255, b"x"), (wire.DATA, 1, b"")],
)
def test_data_that_makes_no_sense_cuts_off(rig: Rig, kind: int, stream: int, payload: bytes) -> None:
    rig.live()
    client = rig.raw()
    client.open(1, "exec")
    rig.agent.send(kind, opened(rig).channel, payload, stream)
    assert client.result(1).text("error") == "EPROTO"


def test_frames_that_cost_no_credit_are_not_repeated(rig: Rig) -> None:
    rig.live()
    client = rig.raw()
    client.open(1, "exec")
    number = opened(rig).channel
    for _ in range(1000):
        rig.agent.send(wire.EOF, number, b"", wire.STDOUT)
        rig.agent.send(wire.CREDIT, number, b"odd")
        rig.agent.send(wire.OPEN, number, b"")
        rig.agent.send(99, number, b"")
        rig.agent.send(wire.RESULT, number + 1, b"")
    rig.agent.result(number, code=0)
    assert client.read() == Frame(wire.EOF, 1, b"", wire.STDOUT)
    assert client.result(1).number("code") == 0


# -- clients that talk nonsense ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "nonsense",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"IN\x01\0\1\0\0\0\1\0\1\0",  # too long
        wire.encode_frame(Frame(wire.OPEN, 0, b"")),  # the link is no channel
        wire.encode_frame(Frame(wire.OPEN, 1, wire.encode_fields([("verb", "keeper.hold"), ("on_drop", "resume")]))) * 2,
    ],
)
def test_a_client_that_talks_nonsense_is_dropped(rig: Rig, nonsense: bytes) -> None:
    rig.greet()
    client = rig.raw()
    client.socket.sendall(nonsense)
    assert client.read() is None
    assert keeper.status(rig.link()).state == "running"


def test_what_belongs_to_no_channel_is_ignored(rig: Rig) -> None:
    rig.live()
    client = rig.raw()
    for kind in (*range(2, 12), 255):
        client.send(kind, 7, b"whatever")
    client.open(8, "keeper.status")
    assert client.result(8).text("state") == "running"


@pytest.mark.parametrize("payload", [b"\1", b"\1\0\xff\0\0\0x", b"\1\0\0\0\0\x80"])
def test_fields_cut_short_are_refused(rig: Rig, payload: bytes) -> None:
    rig.live()
    client = rig.raw()
    client.send(wire.OPEN, 1, payload)
    assert client.result(1).text("error") == "EINVAL"


def test_many_frames_in_small_pieces(rig: Rig) -> None:
    rig.greet()
    client = rig.raw()
    for byte in b"".join(
        wire.encode_frame(Frame(wire.OPEN, n, wire.encode_fields([("verb", "keeper.status")]))) for n in (1, 2, 3)
    ):
        client.socket.sendall(bytes([byte]))
    assert [client.result(n).text("state") for n in (1, 2, 3)] == ["running"] * 3


@pytest.mark.root  # the keeper lets no ordinary user look at its memory
def test_one_who_asks_without_end_and_never_reads(rig: Rig) -> None:
    rig.live()
    client = rig.raw()
    frame = wire.encode_frame(Frame(wire.OPEN, 1, wire.encode_fields([("verb", "keeper.status")])))
    send_until_full(client, itertools.repeat(frame * 500, 10_000))
    assert keeper.status(rig.link()).state == "running"
    assert resident(rig) < 16_000  # answers to what was read at once before reading stopped; all of them would be hundreds of MiB
    client.socket.close()
    assert keeper.status(rig.link()).state == "running"
    comes_to_rest(rig)


# -- with the real agent -------------------------------------------------------------------------------------------------------
def test_with_the_real_agent(rig: Rig, tmp_path: Path) -> None:
    rig.greet()
    port = rig.agent.port
    process = subprocess.Popen([native_path("insula-agent"), "--port", f"fd:{port.fileno()}"], pass_fds=[port.fileno()])
    try:
        rig.event("VSERPORT_CHANGE", open=True, id="agent0")
        link = rig.link()
        assert keeper.wait_agent(link, 10).number("version") == 1
        channel = link.open("exec", argv=[b"cat"], user=str(os.getuid()))
        data = os.urandom(3_000_000)
        got, sent = b"", 0
        while len(got) < len(data):
            if sent < len(data):
                sent += channel.send(data[sent:])
            link.poll(timeout=5)
            while came := channel.take():
                got += came[1]
        channel.eof()
        assert channel.finish(10).number("code") == 0
        assert got == data
    finally:
        process.kill()
        process.wait()
