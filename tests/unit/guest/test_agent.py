"""Calls to agent and keeper: what they send, and what they make of the answers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from insula.client.streams import MemoryStreams
from insula.errors import AgentAbsent, GuestError, MachineEnded
from insula.guest import agent as calls
from insula.guest import keeper, wire
from insula.guest.agent import GuestIdentity, Nic
from insula.guest.link import Link
from insula.host.namespaces import IDS
from tests.framework.peer import Peer


def sent(peer: Peer) -> list[wire.Pair]:
    """The fields of the request the link sent."""
    frame = peer.read()
    assert frame.type == wire.OPEN
    return list(wire.decode_fields(frame.payload))


# -- a real agent --------------------------------------------------------------------------------------------------------------
def test_ping_brings_back_what_was_sent(agent: Link) -> None:
    assert 0 < calls.ping(agent, b"\0\xffdata") < 10
    assert agent.call("ping", data=b"\0\xffdata").raw("data") == b"\0\xffdata"


def test_stat_of_a_file_a_folder_and_a_link(agent: Link, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    file.chmod(0o640)
    os.utime(file, ns=(1, 2))
    (tmp_path / "link").symlink_to("file")
    found = calls.stat(agent, os.fspath(file))
    # An ordinary user who runs the tests is the last one of the agent's ids (tests/unit/conftest.py).
    assert (found.kind, found.mode, found.size, found.mtime_ns, found.uid) == ("f", 0o640, 5, 2, os.getuid() and IDS)
    assert calls.stat(agent, os.fspath(tmp_path)).kind == "d"
    link = calls.stat(agent, os.fspath(tmp_path / "link"))
    assert (link.kind, link.target) == ("l", b"file")


def test_stat_of_what_is_not_there(agent: Link) -> None:
    with pytest.raises(GuestError, match="no such file in the guest: /no/such"):
        calls.stat(agent, "/no/such")


def test_unknown_verb_is_refused_not_fatal(agent: Link) -> None:
    with pytest.raises(GuestError):
        agent.call("no-such-verb")
    calls.ping(agent)


def test_addresses_come_back_as_text(agent: Link) -> None:
    assert all("/" in address for address in calls.addresses(agent))


def test_hangup_ends_other_requests(agent: Link) -> None:
    channel = agent.open("exec", argv=["sleep", "60"])
    calls.ping(agent)
    calls.hangup(agent)
    with pytest.raises(GuestError) as caught:
        channel.finish(5)
    assert caught.value.code == "hung_up"


# -- what is sent ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "fields"),
    [
        (lambda link: calls.set_clock(link, 5), [("verb", "clock"), ("time_ns", 5)]),
        (calls.freeze, [("verb", "freeze")]),
        (calls.thaw, [("verb", "thaw")]),
        (calls.sync, [("verb", "sync")]),
        (lambda link: calls.shutdown(link, "reboot"), [("verb", "shutdown"), ("how", "reboot")]),
        (lambda link: calls.ping(link, wait=2), [("verb", "ping"), ("data", b""), ("wait_ms", 2000)]),
        (lambda link: keeper.quit_machine(link, "kill"), [("verb", "keeper.quit"), ("how", "kill")]),
        (lambda link: keeper.wait_agent(link, 1.5), [("verb", "keeper.wait"), ("until", "agent"), ("wait_ms", 1500)]),
        (lambda link: keeper.wait_end(link, 0), [("verb", "keeper.wait"), ("until", "end"), ("wait_ms", 0)]),
    ],
)
def test_requests_are_as_documented(peer: Peer, call: Callable[[Link], object], fields: list[wire.Pair]) -> None:
    peer.result(1)
    call(peer.link)
    assert sent(peer) == fields


def test_reseed_never_sends_the_same_twice(peer: Peer) -> None:
    seeds = set()
    for channel in (1, 2):
        peer.result(channel)
        calls.reseed(peer.link)
        verb, (_, seed) = sent(peer)
        assert verb == ("verb", "reseed")
        assert isinstance(seed, bytes)
        assert len(seed) == 64
        seeds.add(seed)
    assert len(seeds) == 2


def test_identity_keeps_the_order_of_cards(peer: Peer) -> None:
    first = Nic("52:54:00:00:00:01", "52:54:00:00:00:02", ("10.0.0.2/24", "fd00::2/64"), ("10.0.0.1",), ("10.0.0.3",))
    peer.result(1)
    calls.set_identity(
        peer.link, GuestIdentity("0" * 32, "web", (("ssh_host_ed25519_key", b"secret\n"),), (first, Nic("52:54:00:00:00:09")))
    )
    assert sent(peer) == [
        ("verb", "identity"),
        ("machine_id", "0" * 32),
        ("hostname", "web"),
        ("host_key", b"ssh_host_ed25519_key\0secret\n"),
        ("mac", "52:54:00:00:00:01"),
        ("new_mac", "52:54:00:00:00:02"),
        ("address", "10.0.0.2/24"),
        ("address", "fd00::2/64"),
        ("gateway", "10.0.0.1"),
        ("dns", "10.0.0.3"),
        ("mac", "52:54:00:00:00:09"),
    ]


def test_hostile_addresses_are_cleaned(peer: Peer) -> None:
    peer.result(1, address=["10.0.2.15/24", "\x1b[2J"])
    assert calls.addresses(peer.link) == ("10.0.2.15/24", "\\x1b[2J")


# -- the keeper --------------------------------------------------------------------------------------------------------------
def test_status_with_and_without_agent(peer: Peer) -> None:
    peer.result(1, state="running", version=1, os="debian")
    status = keeper.status(peer.link)
    assert (status.state, status.agent is not None and status.agent.text("os")) == ("running", "debian")
    peer.result(2, state="ended", reason="panic", version=0)
    status = keeper.status(peer.link)
    assert (status.state, status.reason, status.agent) == ("ended", "panic", None)


def test_waiting_for_an_agent_that_never_comes(peer: Peer) -> None:
    peer.result(1, error="ETIMEDOUT")
    with pytest.raises(GuestError) as caught:
        keeper.wait_agent(peer.link, 1)
    assert (caught.value.code, str(caught.value)) == ("timeout", "it took too long: waiting for the guest's agent")


def test_waiting_for_an_agent_of_a_machine_that_ends(peer: Peer) -> None:
    peer.result(1, error="ENDED", reason="killed by SIGKILL")
    with pytest.raises(MachineEnded, match="killed by SIGKILL"):
        keeper.wait_agent(peer.link, 1)


def test_absent_agent_has_a_hint(peer: Peer) -> None:
    peer.result(1, error="EAGENT")
    with pytest.raises(AgentAbsent) as caught:
        calls.ping(peer.link)
    assert "console" in (caught.value.hint or "")


def test_console_shows_and_ends(peer: Peer) -> None:
    peer.send(wire.DATA, 1, b"login: ", wire.STDOUT)
    peer.result(1)
    streams = MemoryStreams()
    keeper.console(peer.link, streams, follow=False, keys=False)
    assert streams.output == b"login: "
    assert sent(peer) == [("verb", "keeper.console"), ("follow", 0), ("input", 0)]


def test_events_fail_with_the_keepers_words(peer: Peer) -> None:
    peer.result(1, error="EAGAIN")
    with pytest.raises(GuestError) as caught:
        keeper.events(peer.link, MemoryStreams())
    assert caught.value.code == "too_many_channels"


def test_hold_is_in_force_when_it_returns_and_released_on_the_way_out(peer: Peer) -> None:
    """The keeper serves frames in order: the answer to a later request shows that it saw the hold."""
    order: list[wire.Pair | int] = []

    def serve() -> None:
        order.extend(pair for pair in sent(peer))
        order.extend(pair for pair in sent(peer))
        peer.result(2)
        order.append(peer.read().type)

    thread = threading.Thread(target=serve)
    thread.start()
    with keeper.hold(peer.link, "resume") as hold:
        assert len(order) == 3
    hold.release()
    thread.join(5)
    assert order == [("verb", "keeper.hold"), ("on_drop", "resume"), ("verb", "keeper.status"), wire.CLOSE]


def test_hold_that_is_refused(peer: Peer) -> None:
    peer.result(1, error="ENDED", reason="gone")
    peer.result(2, state="ended")
    with pytest.raises(MachineEnded, match="gone"):
        keeper.hold(peer.link, "quit")
