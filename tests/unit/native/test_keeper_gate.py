"""The gate: whoever holds it is the only one whom the agent answers, until he lets the others in or dies."""

from __future__ import annotations

import pytest

from insula.errors import AgentAbsent, GuestError, MachineEnded
from insula.guest import keeper, wire
from tests.unit.native.rig import Rig


def verb(rig: Rig) -> str:
    """What the agent is asked next; it answers."""
    frame = rig.agent.read()
    assert frame.type == wire.OPEN
    rig.agent.result(frame.channel)
    return wire.decode_fields(frame.payload).text("verb")


def gated(rig: Rig, on_drop: str = "quit", *, live: bool = True) -> keeper.Hold:
    rig.greet(agent_open=True)
    hold = keeper.hold(rig.link(), on_drop, gate=True)
    if live:
        rig.agent.live()
    return hold


def test_to_others_no_agent_answers(rig: Rig) -> None:
    gated(rig)
    with rig.link() as other:
        with pytest.raises(AgentAbsent):
            other.call("exec", timeout=10)
        with pytest.raises(AgentAbsent):
            other.call("exec", wait_ms=30, timeout=10)
        with pytest.raises(GuestError, match="took too long"):
            keeper.wait_agent(other, 0.03)
        assert keeper.status(other).agent is None
    assert rig.record("status")["agent"] is False
    assert "AGENT" not in rig.events()


def test_the_holder_speaks_with_it(rig: Rig) -> None:
    rig.greet(agent_open=True)
    link = rig.link()
    keeper.hold(link, "quit", gate=True)
    early = link.open("ping", wait_ms=10_000)
    rig.agent.live()
    assert verb(rig) == "ping"
    early.finish(10)
    assert keeper.wait_agent(link, 10).number("version") == 1
    later = link.open("renew")
    assert verb(rig) == "renew"
    later.finish(10)


def test_who_waits_is_let_in_when_it_opens(rig: Rig) -> None:
    hold = gated(rig, live=False)
    other = rig.link()
    early = other.open("exec", wait_ms=10_000)
    answered = other.open("keeper.wait", until="agent", wait_ms=10_000)
    keeper.status(other)
    rig.agent.live()
    late = other.open("get", wait_ms=10_000)
    keeper.status(other)
    assert (early.result, answered.result) == (None, None)
    hold.release()
    assert sorted((verb(rig), verb(rig))) == ["exec", "get"]
    for channel in (early, late):
        channel.finish(10)
    assert answered.finish(10).number("version") == 1
    assert rig.record("status")["agent"] is True
    assert rig.events().count("AGENT") == 1


def test_a_second_gate_is_refused(rig: Rig) -> None:
    gated(rig)
    with pytest.raises(GuestError) as caught:
        keeper.hold(rig.link(), "resume", gate=True)
    assert caught.value.code == "guest_ebusy"
    with keeper.hold(rig.link(), "resume"):  # it is only the gate there is one of
        pass


def test_what_was_let_in_before_goes_on(rig: Rig) -> None:
    rig.live()
    running = rig.link().open("exec")
    number = rig.agent.read().channel
    with keeper.hold(rig.link(), "resume", gate=True):
        with pytest.raises(AgentAbsent):
            rig.link().call("exec", timeout=10)
        rig.agent.result(number, code=7)
        assert running.finish(10).number("code") == 7
    rig.link().open("exec", wait_ms=10_000)
    assert verb(rig) == "exec"  # who is let in is let in after that was noted
    assert rig.events().count("AGENT") == 3


def test_a_holder_who_dies_and_had_it_resume_lets_them_in(rig: Rig) -> None:
    rig.greet(status="paused", agent_open=True)
    link = rig.link()
    keeper.hold(link, "resume", gate=True)
    other = rig.link().open("exec", wait_ms=10_000)
    link.close()
    assert rig.command() == "cont"
    rig.event("RESUME")
    rig.agent.live()
    assert verb(rig) == "exec"
    other.finish(10)


def test_a_holder_who_dies_and_had_it_end_lets_nobody_in(rig: Rig) -> None:
    rig.greet(agent_open=True)
    link = rig.link()
    keeper.hold(link, "quit", gate=True)
    rig.agent.live()
    waiting = rig.link().open("exec", wait_ms=10_000)
    link.close()
    assert rig.command() == "quit"
    with rig.link() as other, pytest.raises(AgentAbsent):
        other.call("exec", timeout=10)
    with pytest.raises(GuestError):
        keeper.hold(rig.link(), "resume", gate=True)
    rig.end()
    with pytest.raises(MachineEnded):
        waiting.finish(10)


def test_a_holder_who_dies_and_had_it_pause_lets_nobody_in_until_another_has_held_it(rig: Rig) -> None:
    rig.greet(status="paused", agent_open=True)
    link = rig.link()
    keeper.hold(link, "pause", gate=True)
    rig.event("RESUME")
    rig.agent.live()
    waiting = rig.link().open("exec", wait_ms=10_000)
    link.close()
    assert rig.command() == "stop"
    with rig.link() as other, pytest.raises(AgentAbsent):
        other.call("exec", timeout=10)
    second = rig.link()
    with keeper.hold(second, "pause", gate=True):
        own = second.open("renew", wait_ms=10_000)
        assert verb(rig) == "renew"
        own.finish(10)
        assert waiting.result is None
    assert verb(rig) == "exec"
    waiting.finish(10)
