"""The agent, run as it is in a guest, spoken to over its port: programs, lives, and hosts that misbehave."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.errors import GuestError
from insula.guest import agent, wire
from insula.guest.link import Link
from tests.unit.native.agent_rig import Guest, run


@pytest.fixture
def guest(agent_program: str, tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(agent_program, tmp_path)
    yield guest
    guest.close()


@pytest.fixture
def link(guest: Guest) -> Link:
    return guest.link()


# -- the beginning of a life -------------------------------------------------------------------------------------------------
def test_the_hello_tells_who_answers(guest: Guest) -> None:
    hello = guest.begin_life()
    fields = hello.fields
    assert (hello.version, fields.number("version"), fields.number("pid1", 7)) == (1, 1, 0)
    assert (fields.text("kernel"), fields.text("hostname")) == (os.uname().release, os.uname().nodename)
    assert {"exec", "put", "get", "identity", "freeze"} <= set(fields.texts("features"))


def test_a_host_of_other_versions_is_told_so_and_may_ask_again(guest: Guest) -> None:
    nonce = secrets.token_bytes(16)
    guest.port.sendall(wire.encode_sync(nonce, 7, 9))
    heard = b""
    while (found := wire.find_hello(heard, nonce)) is None:
        heard += guest.port.recv(65536)
    assert found[0].version == 0
    assert guest.begin_life().version == 1


def test_a_new_life_ends_what_ran_in_the_old_one(guest: Guest) -> None:
    raw = guest.raw()
    raw.open(1, "exec", argv=[b"sh", b"-c", b"trap 'touch /tmp/hung-up; exit' HUP; sleep 60 & echo ready; wait"])
    assert raw.read().payload == b"ready\n"
    raw = guest.raw()
    raw.open(1, "exec", argv=[b"sh", b"-c", b"until [ -e /tmp/hung-up ]; do sleep 0.01; done"])
    assert raw.result(1).number("code", 7) == 0


def test_the_same_sync_again_ends_nothing(guest: Guest) -> None:
    nonce = secrets.token_bytes(16)
    guest.begin_life(nonce)
    raw = guest.raw()
    guest.begin_life(nonce)
    guest.begin_life(nonce)
    raw.open(5, "exec", argv=[b"cat"])
    raw.ping(6)
    guest.begin_life(nonce)
    raw.send(wire.DATA, 5, b"still here")
    assert raw.read().payload == b"still here"


@pytest.mark.parametrize(
    "garbage",
    [
        b"GARBAGE" * 1000,
        b"IN\x01\x00\x01\x00\x00\x00\xff\xff\xff\xff",  # a frame of 4 GiB
        b"IN\x01\x00\x01\x00\x00\x00\x00\x00\x01\x00" + b"half",  # of which most never comes
        wire.SYNC_MARK + b"cut short",
        wire.SYNC_MARK * 50,
    ],
    ids=["noise", "huge", "half", "half sync", "marks"],
)
def test_after_garbage_the_next_life_begins_as_usual(guest: Guest, garbage: bytes) -> None:
    guest.port.sendall(garbage)
    guest.begin_life()
    guest.port.sendall(garbage)
    guest.raw().ping(1)


# -- programs ------------------------------------------------------------------------------------------------------------------
def test_streams_and_exit_code(link: Link) -> None:
    channel = link.open("exec", argv=["sh", "-c", "cat; echo told >&2; exit 41"])
    channel.write(b"given\n")
    channel.eof()
    heard = {wire.STDOUT: b"", wire.STDERR: b""}
    for stream, data in channel:
        heard[stream] += data
    assert heard == {wire.STDOUT: b"given\n", wire.STDERR: b"told\n"}
    assert channel.finish().number("code") == 41


def test_a_program_gets_a_clean_environment_and_no_descriptors_of_ours(link: Link) -> None:
    _, out = run(link, "sh", "-c", "pwd; env | sort; ls /proc/self/fd", env="A=1")
    assert out.decode().split() == [
        "/root", "A=1", "HOME=/root", "LANG=C.UTF-8", "LOGNAME=root",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PWD=/root", "SHELL=/bin/sh", "USER=root",
        "0", "1", "2", "3",
    ]  # fmt: skip


def test_given_words_replace_those_of_the_environment(link: Link) -> None:
    channel = link.open(
        "exec", argv=["sh", "-c", "echo $HOME $LANG; pwd"], env=["HOME=/elsewhere", "LANG=x", "LANG=C"], cwd="/usr"
    )
    out = b"".join(data for _, data in channel)
    assert out == b"/elsewhere C\n/usr\n"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"argv": "no-such-program"}, "command_not_found"),
        ({"argv": "/no/such/program"}, "command_not_found"),
        ({"argv": ""}, "command_not_found"),
        ({"argv": "/etc/passwd"}, "command_not_executable"),
        ({"argv": "true", "cwd": "/no/such/folder"}, "no_such_folder"),
        ({"argv": "true", "user": "nobody-here"}, "no_such_user"),
    ],
)
def test_why_a_program_did_not_start(link: Link, fields: dict[str, wire.Value], code: str) -> None:
    with pytest.raises(GuestError) as failed:
        link.open("exec", **fields).finish(10)
    assert failed.value.code == code


def test_the_signal_that_ended_a_program_is_named(link: Link) -> None:
    channel = link.open("exec", argv=["sleep", "60"])
    channel.signal("NOSUCH")
    channel.signal("USR1")
    assert channel.finish(10).text("signal") == "USR1"


def test_a_terminal(link: Link) -> None:
    channel = link.open("exec", argv=["sh", "-c", "tty; stty size; read word; stty size; echo $TERM"], tty=1, rows=33, cols=99)
    channel.resize(50, 132)
    channel.write(b"\r")
    out = b"".join(data for _, data in channel).decode().split()
    assert out[0].startswith("/dev/pts/")
    assert out[-3:] == ["50", "132", "xterm"]
    assert channel.finish().number("code", 7) == 0


def test_keys_and_signals_reach_what_is_in_front_of_the_terminal(link: Link) -> None:
    script = "trap 'echo one' INT; stty -echo; echo ready; cat; echo two"
    channel = link.open("exec", argv=["sh", "-c", script], tty=1)
    assert channel.next(10) == (wire.STDOUT, b"ready\r\n")
    channel.write(b"typed\r")
    assert channel.next(10) == (wire.STDOUT, b"typed\r\n")  # cat is in front
    channel.signal("INT")  # ends cat; the shell lives on
    out = b"".join(data for _, data in channel).replace(b"\r", b"").split()
    assert out == [b"one", b"two"]


def test_the_end_of_input_is_a_key_of_the_terminal(link: Link) -> None:
    channel = link.open("exec", argv=["cat"], tty=1)
    channel.write(b"word\r")
    channel.eof()
    assert b"".join(data for _, data in channel).replace(b"\r", b"") == b"word\nword\n"


def test_what_a_program_wrote_is_all_delivered(link: Link) -> None:
    channel = link.open("exec", argv=["head", "-c", "3000000", "/dev/zero"])
    assert sum(len(data) for _, data in channel) == 3_000_000


def test_a_child_that_keeps_the_output_open_is_waited_for_one_second(link: Link) -> None:
    started = time.monotonic()
    _, out = run(link, "sh", "-c", "sleep 60 & echo done")
    assert out == b"done\n"
    assert 0.9 < time.monotonic() - started < 30


def test_closing_hangs_the_program_up(link: Link) -> None:
    channel = link.open("exec", argv=["sh", "-c", "trap 'touch /tmp/gone; exit' HUP; sleep 60 & echo ready; wait"])
    assert channel.next(10) == (wire.STDOUT, b"ready\n")
    channel.close()
    run(link, "sh", "-c", "until [ -e /tmp/gone ]; do sleep 0.01; done")


def test_hangup_ends_every_other_request(guest: Guest) -> None:
    raw = guest.raw()
    raw.open(1, "exec", argv=[b"sh", b"-c", b"trap 'touch /tmp/hung-up; exit' HUP; sleep 60 & echo ready; wait"])
    assert raw.read().payload == b"ready\n"
    raw.open(2, "hangup")
    assert raw.result(1).text("error") == "EHANGUP"
    assert "error" not in raw.result(2)
    raw.open(3, "exec", argv=[b"sh", b"-c", b"until [ -e /tmp/hung-up ]; do sleep 0.01; done"])
    assert raw.result(3).number("code", 7) == 0


# -- hosts that misbehave -------------------------------------------------------------------------------------------------------
def test_one_program_that_does_not_read_stops_nobody_else(guest: Guest) -> None:
    raw = guest.raw()
    raw.open(1, "exec", argv=[b"sleep", b"60"])
    for _ in range(4):
        raw.send(wire.DATA, 1, bytes(65536))
    raw.ping(2)
    raw.send(wire.SIGNAL, 1, b"KILL")
    assert raw.result(1).text("signal") == "KILL"


def test_more_than_the_window_is_refused(guest: Guest) -> None:
    raw = guest.raw()
    raw.open(1, "exec", argv=[b"sleep", b"60"])
    for _ in range(10):  # what the pipe takes is consumed and may be sent again: 256 KiB in the pipe, as much waiting
        raw.send(wire.DATA, 1, bytes(65536))
    assert raw.result(1).text("error") == "EPROTO"
    raw.ping(2)


def test_a_host_that_gives_no_credit_gets_one_window_and_stops_nobody_else(guest: Guest) -> None:
    raw = guest.raw()
    raw.open(1, "exec", argv=[b"cat", b"/dev/zero"])
    heard = 0
    while heard < wire.WINDOW:
        heard += len(raw.read().payload)
    raw.ping(2)
    assert heard == wire.WINDOW


def test_at_most_256_channels(guest: Guest) -> None:
    raw = guest.raw()
    for channel in range(1, 257):
        raw.open(channel, "put", path=b"/tmp")
    raw.open(257, "ping")
    assert raw.result(257).text("error") == "EAGAIN"
    raw.send(wire.CLOSE, 9)
    raw.ping(258)


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (wire.encode_fields([("verb", "dance")]), "ENOSYS"),
        (b"", "ENOSYS"),
        (b"\x01\x00\xff\xff\xff\xffping", "EPROTO"),
        (wire.encode_fields([("verb", "exec")]), "EINVAL"),
        (wire.encode_fields([("verb", "get")]), "EINVAL"),
        (wire.encode_fields([("verb", "put")]), "EINVAL"),
        (wire.encode_fields([("verb", "clock")]), "EINVAL"),
        (wire.encode_fields([("verb", "reseed"), ("data", b"short")]), "EINVAL"),
        (wire.encode_fields([("verb", "shutdown"), ("how", "sideways")]), "EINVAL"),
    ],
)
def test_requests_that_make_no_sense(guest: Guest, payload: bytes, error: str) -> None:
    raw = guest.raw()
    raw.send(wire.OPEN, 1, payload)
    assert raw.result(1).text("error") == error


def test_frames_nobody_waits_for_are_ignored(guest: Guest) -> None:
    raw = guest.raw()
    for kind in (0, *range(2, 12), 255):
        raw.send(kind, 77, b"\xff\xff\xff\xff", stream=9)
    raw.open(0, "ping")
    raw.ping(1)


def test_the_host_going_away_costs_no_cpu_and_hurts_nothing(agent_program: str) -> None:
    ours, theirs = socket.socketpair()
    process = subprocess.Popen([agent_program, "--port", f"fd:{theirs.fileno()}"], pass_fds=[theirs.fileno()])
    try:
        theirs.close()
        ours.close()
        time.sleep(0.2)  # the time over which its use of the CPU is looked at
        words = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        assert process.poll() is None
        assert int(words[11]) + int(words[12]) <= 2  # ticks of 10 ms, in user and system
    finally:
        process.kill()
        process.wait()


# -- the guest as a whole -----------------------------------------------------------------------------------------------------
def test_identity_is_made_new(guest: Guest) -> None:
    (guest.etc / "hosts").write_text("127.0.0.1\tlocalhost\n127.0.1.1\told.example old\n::1\tlocalhost")
    (guest.etc / "resolv.conf").symlink_to("/run/elsewhere")
    link = guest.link()
    new = agent.GuestIdentity(
        machine_id="0123456789abcdef" * 2,
        hostname="brisk-iona-3f",
        host_keys=(("ssh_host_ed25519_key", b"secret"), ("ssh_host_ed25519_key.pub", b"public")),
    )
    agent.set_identity(link, new)
    assert (guest.etc / "machine-id").read_text() == new.machine_id + "\n"
    assert (guest.etc / "hostname").read_text() == "brisk-iona-3f\n"
    assert (guest.etc / "hosts").read_text() == "127.0.0.1\tlocalhost\n127.0.1.1\tbrisk-iona-3f\n::1\tlocalhost\n"
    keys = guest.etc / "ssh"
    assert [(key.name, key.stat().st_mode & 0o7777, key.read_bytes()) for key in sorted(keys.iterdir())] == [
        ("ssh_host_ed25519_key", 0o600, b"secret"),
        ("ssh_host_ed25519_key.pub", 0o644, b"public"),
    ]
    assert (guest.etc / "resolv.conf").is_symlink()
    assert run(link, "uname", "-n")[1] == b"brisk-iona-3f\n"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ([("machine_id", "../../x")], "machine_id"),
        ([("hostname", "a b")], "hostname"),
        ([("host_key", b"../../evil\0x")], "host_key"),
        ([("host_key", b"no content")], "host_key"),
        ([("mac", "52:54:00:00:00:01")], "52:54:00:00:00:01"),
        ([("mac", "nonsense")], "nonsense"),
        ([("dns", "nonsense")], "nonsense"),
    ],
)
def test_an_identity_that_cannot_be_is_refused_and_named(guest: Guest, fields: list[tuple[str, wire.Value]], told: str) -> None:
    raw = guest.raw()
    raw.send(wire.OPEN, 1, wire.encode_fields([("verb", "identity"), *fields, ("hostname", "good")]))
    answer = raw.result(1)
    assert answer.raw("path") == told.encode()
    assert (guest.etc / "hostname").read_text() == "good\n"  # the rest is done all the same


def test_frozen_programs_stand_still_until_thawed(link: Link) -> None:
    channel = link.open("exec", argv=["sh", "-c", "while read line; do echo $line; done"])
    channel.write(b"one\n")
    assert channel.next(10) == (wire.STDOUT, b"one\n")
    agent.freeze(link)
    channel.write(b"two\n")
    agent.ping(link)
    assert channel.take() is None
    agent.thaw(link)
    assert channel.next(10) == (wire.STDOUT, b"two\n")


def test_what_somebody_else_stopped_stays_stopped(guest: Guest) -> None:
    raw = guest.raw()
    stopped = b'until [ "$(cut -d" " -f3 /proc/$!/stat)" = T ]; do sleep 0.01; done'
    raw.open(1, "exec", argv=[b"sh", b"-c", b"sleep 60 & kill -STOP $!; " + stopped + b"; echo $! > /tmp/pid; exec sleep 60"])
    raw.open(2, "exec", argv=[b"sh", b"-c", b"until [ -s /tmp/pid ]; do sleep 0.01; done"])
    raw.result(2)
    for channel, verb in ((3, "freeze"), (4, "freeze"), (5, "thaw")):
        raw.open(channel, verb)
        assert "error" not in raw.result(channel)
    raw.open(6, "exec", argv=[b"sh", b"-c", b"cut -d' ' -f3 /proc/$(cat /tmp/pid)/stat"])
    assert raw.read().payload == b"T\n"


def test_what_only_a_real_root_may_is_refused_by_name(guest: Guest) -> None:
    raw = guest.raw()
    raw.open(1, "clock", time_ns=1_000_000_000)
    assert raw.result(1).text("error") == "EPERM"
    raw.open(2, "reseed", data=bytes(64))
    assert raw.result(2).text("error") == "EPERM"


def test_sync_and_addresses(link: Link) -> None:
    agent.sync(link)
    assert agent.addresses(link) == ()  # loopback alone


# -- as PID 1 -------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def whole_guest(agent_program: str, tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(agent_program, tmp_path, pid1=True)
    yield guest
    guest.close()


def test_pid_1_reaps_what_nobody_waits_for(whole_guest: Guest) -> None:
    assert whole_guest.begin_life().fields.number("pid1") == 1
    link = whole_guest.link()
    run(link, "sh", "-c", "(sh -c 'echo $$ > /tmp/orphan' &)")
    run(link, "sh", "-c", "until [ -s /tmp/orphan ] && ! [ -e /proc/$(cat /tmp/orphan) ]; do sleep 0.01; done")


def test_pid_1_asks_processes_to_end_before_it_powers_off(whole_guest: Guest) -> None:
    raw = whole_guest.raw()
    raw.open(1, "exec", argv=[b"sh", b"-c", b"trap 'touch /tmp/asked; exit' TERM; echo ready; read word"])
    assert raw.read().payload == b"ready\n"
    raw.open(2, "shutdown", how="poweroff")
    assert "error" not in raw.result(2)
    whole_guest.process.wait(10)
    assert (whole_guest.tmp / "asked").exists()
