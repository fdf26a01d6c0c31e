"""renew: all that a guest does that goes on from a state, done by a real agent in namespaces."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.errors import GuestError
from insula.guest import agent, wire
from insula.guest.link import Link
from insula.host.native import native_path
from tests.unit.native.agent_rig import Guest, run

NEW = agent.GuestIdentity(machine_id="0123456789abcdef" * 2, hostname="brisk-iona-3f")
FORMER = "calm-skye-00"


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(os.fspath(native_path("insula-agent")), tmp_path)
    yield guest
    guest.close()


def script(path: Path, text: str, mode: int = 0o755) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)


def test_a_fork_is_told_what_was_done_and_what_was_not(guest: Guest) -> None:
    renewed = agent.renew(guest.link(), NEW, former=FORMER)
    assert {"connections", "machine-id", "hostname"} <= set(renewed.done)
    # This kernel is the host's: neither its generator nor its clock is a guest's to set.
    assert renewed.left["entropy"] == "EPERM"
    assert renewed.left["clock"] == "EPERM"
    assert not {"hooks", "host-keys", "network"} & {*renewed.done, *renewed.left}  # there is nothing of these in it
    assert (guest.etc / "machine-id").read_text() == NEW.machine_id + "\n"


def test_a_machine_that_stays_who_it_is_keeps_the_rest(guest: Guest) -> None:
    script(guest.etc / "insula/fork.d/10-never", "touch /tmp/ran")
    (guest.etc / "ssh").mkdir()
    key = guest.etc / "ssh/ssh_host_ed25519_key"
    key.write_text("kept")
    renewed = agent.renew(guest.link())
    assert {*renewed.done, *renewed.left} == {"entropy", "clock"}
    assert key.read_text() == "kept"
    assert not (guest.tmp / "ran").exists()


def test_hooks_run_in_order_and_know_both_names(guest: Guest) -> None:
    folder = guest.etc / "insula/fork.d"
    tell = 'echo "$(basename "$0") $INSULA_FORMER_NAME $INSULA_NAME $(uname -n)" >> /tmp/said'
    script(folder / "20-second", tell)
    script(folder / "10-first", tell)
    script(folder / "30-not-executable", tell, 0o644)
    script(folder / "40-backup~", tell)
    script(folder / ".50-hidden", tell)
    script(folder / "60-other.dpkg-old", tell)
    assert "hooks" in agent.renew(guest.link(), NEW, former=FORMER).done
    assert (guest.tmp / "said").read_text().splitlines() == [
        f"10-first {FORMER} brisk-iona-3f brisk-iona-3f",
        f"20-second {FORMER} brisk-iona-3f brisk-iona-3f",
    ]


def test_a_hook_that_fails_is_named_and_the_others_run(guest: Guest) -> None:
    script(guest.etc / "insula/fork.d/10-bad", "exit 3")
    script(guest.etc / "insula/fork.d/20-good", "touch /tmp/ran")
    assert agent.renew(guest.link(), NEW, former=FORMER).left["hooks"] == "10-bad: exit code 3"
    assert (guest.tmp / "ran").exists()


def test_hooks_that_take_too_long_are_ended_with_what_they_started(guest: Guest) -> None:
    script(guest.etc / "insula/fork.d/10-slow", "sleep 1000 & echo $! > /tmp/pid; wait")
    link = guest.link()
    channel = link.open("renew", [("former", FORMER), ("wait_ms", 300)])
    agent.ping(link)  # the agent itself waits for no hook
    assert channel.finish(10).texts("left") == ("hooks: 10-slow: took too long",)
    fields, _ = run(link, "sh", "-c", "! kill -0 $(cat /tmp/pid)")
    assert fields.number("code") == 0


def test_ssh_keys_of_the_former_life_go(guest: Guest) -> None:
    keys = guest.etc / "ssh"
    keys.mkdir()
    for name in (
        "ssh_host_rsa_key",
        "ssh_host_rsa_key.pub",
        "ssh_host_ed25519_key",
        "ssh_host_ed25519_key-cert.pub",
        "sshd_config",
    ):
        (keys / name).write_text("old")
    new = agent.GuestIdentity(host_keys=(("ssh_host_ed25519_key", b"secret"), ("ssh_host_ed25519_key.pub", b"public")))
    renewed = agent.renew(guest.link(), new, former=FORMER)
    assert "host-keys" in renewed.done
    assert renewed.missing_keys == ("ssh_host_rsa_key",)
    assert {key.name: (key.stat().st_mode & 0o777, key.read_text()) for key in keys.iterdir() if key.name != "sshd_config"} == {
        "ssh_host_ed25519_key": (0o600, "secret"),
        "ssh_host_ed25519_key.pub": (0o644, "public"),
    }
    assert (keys / "sshd_config").read_text() == "old"


def test_without_a_key_the_guest_makes_it_itself(guest: Guest) -> None:
    (guest.etc / "ssh").mkdir()
    key = guest.etc / "ssh/ssh_host_ed25519_key"
    key.write_text("old")
    # The guest has no passwd entry that ssh-keygen could not find: it is root.
    assert "host-keys" in agent.renew(guest.link(), NEW, former=FORMER).done
    assert b"PRIVATE KEY" in key.read_bytes()
    assert key.stat().st_mode & 0o777 == 0o600


def test_the_journal_is_found_under_the_new_id(guest: Guest) -> None:
    link = guest.link()
    old = "f" * 32
    (guest.etc / "machine-id").write_text(old + "\n")
    run(link, "sh", "-c", f"mkdir -p /run/log/journal/{old} && echo entry > /run/log/journal/{old}/system.journal")
    agent.renew(link, NEW, former=FORMER)
    _, out = run(link, "sh", "-c", f"cat /run/log/journal/{NEW.machine_id}/system.journal /run/log/journal/{old}/system.journal")
    assert out == b"entry\nentry\n"


CONNECTIONS = """
import select, socket, sys
def pair(here, there):
    server = socket.create_server((there, 0))
    client = socket.create_connection(server.getsockname(), source_address=(here, 0))
    return client, server.accept()[0], server
inner, outer = pair("127.0.0.1", "127.0.0.1"), pair("10.9.9.1", "10.9.9.9")
asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asking.bind(("10.9.9.1", 0))
asking.connect(("10.9.9.9", 53))
print("connected", flush=True)
sys.stdin.readline()
inner[0].sendall(b"x")
assert inner[1].recv(1) == b"x"
outer[2].getsockname()  # who listens goes on
for each in (outer[0], asking):
    try:
        each.getpeername()
        print("alive")
    except OSError:
        print("cut")
"""


def check_cut(guest: Guest) -> None:
    link = guest.link()
    channel = link.open("exec", argv=["python3", "-c", CONNECTIONS])
    assert channel.next(20) == (wire.STDOUT, b"connected\n")
    assert "connections" in agent.renew(link, former=FORMER).done
    channel.write(b"go\n")
    assert b"".join(data for _, data in channel) == b"cut\ncut\n"
    assert channel.finish(20).number("code") == 0


ADDRESS = ("ip", "addr", "add", "10.9.9.1/24", "dev", "lo")  # all of 10.9.9.0/24 answers then


def test_connections_to_others_are_cut_and_those_inside_stay(guest: Guest) -> None:
    raw = guest.raw()
    raw.open(1, "exec", argv=[b"sh", b"-c", b"ip link set lo up; " + " ".join(ADDRESS).encode()])
    assert raw.result(1).number("code") == 0
    check_cut(guest)


@pytest.mark.root
def test_where_the_kernel_does_not_destroy_them_they_are_disconnected(tmp_path: Path) -> None:
    guest = Guest(os.fspath(native_path("insula-agent")), tmp_path, without=["CAP_NET_ADMIN"])
    try:
        guest.begin_life()
        inner = Path(f"/proc/{guest.process.pid}/task/{guest.process.pid}/children").read_text().split()[0]
        subprocess.run(["nsenter", "-t", inner, "-n", *ADDRESS], check=True)
        check_cut(guest)
    finally:
        guest.close()


def test_what_is_asked_wrongly_is_refused_in_part(guest: Guest) -> None:
    raw = guest.raw()
    raw.send(wire.OPEN, 1, wire.encode_fields([("verb", "renew"), ("former", "a"), ("machine_id", "../x"), ("hostname", "good")]))
    answer = raw.result(1)
    assert "machine-id: EINVAL" in answer.texts("left")
    assert "hostname" in answer.texts("done")


def test_closing_ends_a_hook(guest: Guest) -> None:
    script(guest.etc / "insula/fork.d/10-slow", "echo $$ > /tmp/pid; exec sleep 1000")
    link = guest.link()
    channel = link.open("renew", [("former", FORMER)])
    until = time.monotonic() + 60
    while not (guest.tmp / "pid").exists() and time.monotonic() < until:
        agent.ping(link)
    channel.close()
    fields, _ = run(link, "sh", "-c", "while kill -0 $(cat /tmp/pid) 2>/dev/null; do sleep 0.01; done")
    assert fields.number("code") == 0


def test_an_agent_that_does_not_know_it_says_so(guest: Guest) -> None:
    assert "renew" in guest.begin_life().fields.texts("features")
    with pytest.raises(GuestError):
        Link(guest.port).call("renew-all", timeout=10)
