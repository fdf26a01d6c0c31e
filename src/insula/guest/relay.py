"""Pumps a request's streams between whoever asked and the channel that serves it, until the answer came.

Nothing is lost and nothing piles up: input is read only while the guest grants room for it, and output is taken from the
channel (which is what grants more) only once the sink has taken what came before.
"""

from __future__ import annotations

import select
from collections import deque

from insula.guest import wire
from insula.guest.channel import Channel
from insula.guest.wire import Fields
from insula.model.streams import Resize, Sink, Streams


class ReaderGone(Exception):
    """Nobody reads the output any more; the channel has been closed. For callers of `relay`, never shown to a user."""


def relay(channel: Channel, streams: Streams) -> Fields:
    """Returns the answer, which may hold `error`, once all output before it was taken by its sink.

    An exception that strikes meanwhile (KeyboardInterrupt, a sink that fails, MachineEnded) closes the channel, so that what
    runs in the guest is hung up. Raises ReaderGone when a sink says that nobody reads it.
    """
    try:
        return _Relay(channel, streams).run()
    except BrokenPipeError as cause:
        channel.close()
        raise ReaderGone from cause
    except BaseException:
        channel.close()
        raise


class _Relay:
    def __init__(self, channel: Channel, streams: Streams) -> None:
        self._channel = channel
        self._streams = streams
        self._sinks: dict[int, Sink] = {wire.STDOUT: streams.stdout, wire.STDERR: streams.stderr}
        self._pending: dict[int, deque[memoryview]] = {wire.STDOUT: deque(), wire.STDERR: deque()}
        self._input_open = True

    def run(self) -> Fields:
        while True:
            self._pass_controls()
            self._pass_input()
            self._pass_output()
            if self._channel.result is not None and not any(self._pending.values()):
                return self._channel.result
            others = self._interests()
            at_once = self._can_go_on()
            self._channel.link.poll(others, 0 if at_once else None)

    def _pass_controls(self) -> None:
        while (control := self._streams.controls.take()) is not None:
            if isinstance(control, Resize):
                self._channel.resize(control.rows, control.columns)
            else:
                self._channel.signal(control.name)

    def _pass_input(self) -> None:
        if not self._input_open or self._channel.result is not None:
            return
        source = self._streams.stdin
        room = self._channel.room()
        data = b"" if source is None else source.read(room) if room else None
        if data:
            self._channel.send(data)
        elif data is not None:
            self._input_open = False
            self._channel.eof()

    def _pass_output(self) -> None:
        """Give sinks what they take; more is taken from the channel only when nothing waits for a sink."""
        while True:
            for stream, pending in self._pending.items():
                _drain(self._sinks[stream], pending)
            if any(self._pending.values()) or (came := self._channel.take()) is None:
                return
            stream, data = came
            if data and stream in self._pending:
                self._pending[stream].append(memoryview(data))

    def _interests(self) -> dict[int, int]:
        others: dict[int, int] = {}
        source = self._streams.stdin
        if self._input_open and source is not None and self._channel.room():
            _want(others, source.fileno(), select.POLLIN)
        for stream, pending in self._pending.items():
            if pending:
                _want(others, self._sinks[stream].fileno(), select.POLLOUT)
        _want(others, self._streams.controls.fileno(), select.POLLIN)
        return others

    def _can_go_on(self) -> bool:
        """Whether input that never waits can go on now: then there is nothing to wait for."""
        source = self._streams.stdin
        if not self._input_open or self._channel.result is not None or not self._channel.room():
            return False
        return source is None or source.fileno() is None


def _drain(sink: Sink, pending: deque[memoryview]) -> None:
    while pending:
        taken = sink.write(pending[0])
        if taken == 0:
            return
        if taken < len(pending[0]):
            pending[0] = pending[0][taken:]
        else:
            pending.popleft()


def _want(others: dict[int, int], descriptor: int | None, events: int) -> None:
    if descriptor is not None:
        others[descriptor] = others.get(descriptor, 0) | events
