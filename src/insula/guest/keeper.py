"""What the keeper beside QEMU can be asked. Everything in an answer was written by a process that a guest may have taken over."""

from __future__ import annotations

from insula.guest.channel import Channel
from insula.guest.link import Link
from insula.guest.relay import ReaderGone, relay
from insula.guest.wire import Fields
from insula.model.streams import Streams

_LATE = 5.0  # seconds after which a keeper's own clock is no longer trusted


class Status:
    """``state``: ``starting``, ``running``, ``paused`` or ``ended``; ``agent``: its hello, or None while nobody answers."""

    __slots__ = ("agent", "reason", "state")

    def __init__(self, untrusted_fields: Fields) -> None:
        self.state = untrusted_fields.text("state")
        self.reason = untrusted_fields.text("reason")
        self.agent = untrusted_fields if untrusted_fields.number("version") else None


def status(link: Link, *, timeout: float | None = 10.0) -> Status:
    return Status(link.call("keeper.status", timeout=timeout))


def wait_agent(link: Link, timeout: float) -> Fields:
    """Wait until the agent answers; its hello.

    Raises GuestError (``timeout``) after ``timeout`` seconds, MachineEnded when QEMU ended first.
    """
    return _wait(link, "agent", timeout, "waiting for the guest's agent")


def wait_end(link: Link, timeout: float) -> str:
    """Wait until QEMU has ended; the reason. Raises GuestError (``timeout``) after ``timeout`` seconds."""
    return _wait(link, "end", timeout, "waiting for the machine's end").text("reason")


def _wait(link: Link, until: str, timeout: float, subject: str) -> Fields:
    return link.call("keeper.wait", until=until, wait_ms=_milliseconds(timeout), timeout=timeout + _LATE, subject=subject)


def console(link: Link, streams: Streams, *, follow: bool = True, keys: bool = True) -> None:
    """Show what the guest printed on its console, and with ``follow`` what it prints until the machine ends.

    ``keys``: standard input is typed on the console, and its end is the end, after what was printed until then (a keeper of
    an earlier version goes on).
    """
    _stream(link.open("keeper.console", follow=int(follow), input=int(keys)), streams)


def events(link: Link, streams: Streams, *, follow: bool = True) -> None:
    """Write the machine's QMP events, one JSON object a line, to ``streams``' output."""
    _stream(link.open("keeper.events", follow=int(follow)), streams)


def _stream(channel: Channel, streams: Streams) -> None:
    try:
        relay(channel, streams)
    except ReaderGone:
        return
    channel.finish()


class Hold:
    """See `hold`. As a context manager it is released on the way out, whether or not there was an exception."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def release(self) -> None:
        """From now on nothing happens when the connection drops. May be called twice."""
        if self._channel.result is None:
            self._channel.close()

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def hold(link: Link, on_drop: str, *, gate: bool = False) -> Hold:
    """From the return of this call on, the keeper does ``on_drop`` (``resume``, ``pause`` or ``quit``) if this process dies.

    The guest can thus be paused without fear that it stays so. With ``gate`` its agent answers nobody but this link until the
    hold is released. Raises as `Link.call`.
    """
    channel = link.open("keeper.hold", on_drop=on_drop, gate=1 if gate else None)
    # A hold is not answered. Frames of a connection are served in order, so another request's answer shows it was seen.
    link.call("keeper.status", timeout=10.0)
    if channel.result is not None:
        raise channel.failure()
    return Hold(channel)


def quit_machine(link: Link, how: str = "quit", *, timeout: float | None = None) -> None:
    """End QEMU: ``quit`` asks it by QMP, ``kill`` kills it. Returns when it has ended. Raises as `Link.call`."""
    link.call("keeper.quit", how=how, timeout=timeout)


def _milliseconds(seconds: float) -> int:
    return max(0, round(seconds * 1000))
