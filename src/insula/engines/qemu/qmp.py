"""A connection to QEMU's monitor: one request at a time, descriptors beside it, events kept until asked for.

Plain and blocking, because a verb does one thing after the other and a guest may stand still meanwhile; see docs/decisions/0006.
The protocol is QMP as in QEMU's ``docs/interop/qmp-spec.rst``. What comes back is from a process that a guest may have taken
over, hence ``untrusted``, and bounded in size, number and time.
"""

from __future__ import annotations

import array
import contextlib
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import msgspec

from insula.errors import InsulaError, MachineEnded
from insula.host.sockets import connect_unix
from insula.model.text import clean

PATIENCE: Final = 10.0  # seconds for an answer; QEMU gives it in milliseconds unless the host is very busy
_LONGEST_LINE: Final = 8 << 20
_MOST_EVENTS: Final = 4096


class Refused(InsulaError):
    """QEMU answered with an error. ``reason`` is its own sentence."""

    default_code = "monitor_failed"

    def __init__(self, command: str, reason: str) -> None:
        super().__init__(f"QEMU refused '{command}': {reason}")
        self.reason = reason


class Event(msgspec.Struct, frozen=True):
    """An event as QEMU sent it, and when that was, by QEMU's clock in seconds."""

    name: str
    data: dict[str, Any] = {}
    at: float = 0.0


class Monitor:
    """A context manager. Raises MachineEnded (``machine_ended``) whenever QEMU is gone, InsulaError (``monitor_timeout``,
    ``monitor_failed``) when it does not answer or answers nonsense, Refused when it says no."""

    def __init__(self, path: Path, patience: float = PATIENCE, *, wait: bool = True) -> None:
        self._patience = patience
        self._number = 0
        self._received = bytearray()
        self._ahead: dict[int, Any] = {}
        self._events: deque[Event] = deque(maxlen=_MOST_EVENTS)
        try:
            self._socket = connect_unix(path, wait=wait)
        except (FileNotFoundError, ConnectionError) as cause:
            raise _ended() from cause
        except BlockingIOError as cause:
            raise self._silent() from cause

    def __enter__(self) -> Monitor:
        try:
            if "QMP" not in self._message(time.monotonic() + self._patience):
                raise nonsense("no greeting")
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let the next one be served. Closing twice does nothing."""
        self._socket.close()

    def execute(self, command: str, arguments: Mapping[str, object] | None = None, descriptors: Sequence[int] = ()) -> Any:
        """What QEMU returned, as JSON values. ``descriptors`` go with the request, for ``add-fd`` and ``getfd``."""
        self._number += 1
        request = msgspec.json.encode({"execute": command, "arguments": arguments or {}, "id": self._number}) + b"\n"
        deadline = time.monotonic() + self._patience
        self._send(request, descriptors, deadline)
        while True:
            untrusted = self._message(deadline)
            if untrusted.get("id", self._number) != self._number:
                continue  # to a request that a Ctrl-C kept us from waiting for
            if "return" in untrusted:
                return untrusted["return"]
            if isinstance(error := untrusted.get("error"), dict):
                raise Refused(command, clean(str(error.get("desc"))))
            self._keep(untrusted)

    def send_ahead(self, *commands: str) -> None:
        """Ask without waiting, not even for the greeting: for who asks many QEMUs. `take_ready` has the answers. Not to be mixed
        with `execute`."""
        requests = [{"execute": name, "id": number} for number, name in enumerate(("qmp_capabilities", *commands))]
        self._number = len(commands)
        self._send(b"".join(msgspec.json.encode(request) + b"\n" for request in requests), (), time.monotonic() + self._patience)

    def fileno(self) -> int:
        """For poll(2): readable when `take_ready` has something to take."""
        return self._socket.fileno()

    def take_ready(self) -> list[Any] | None:
        """Take in what has come, without waiting for more. What QEMU returned to each command that was sent ahead, as JSON
        values, once all of it is there. Raises Refused, too."""
        self._socket.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            self._receive()
        while (message := self._received_message()) is not None:
            number = message.get("id")
            if isinstance(error := message.get("error"), dict):
                raise Refused("a question", clean(str(error.get("desc"))))
            if isinstance(number, int) and 1 <= number <= self._number and "return" in message:
                self._ahead[number] = message["return"]
        return [self._ahead[number] for number in sorted(self._ahead)] if len(self._ahead) == self._number else None

    def wait_event(self, accept: Callable[[Event], bool], timeout: float) -> Event | None:
        """The first event since the connection began that ``accept`` likes; None after ``timeout`` seconds.

        That event and all before it are forgotten.
        """
        deadline = time.monotonic() + timeout
        while True:
            while self._events:
                event = self._events.popleft()
                if accept(event):
                    return event
            with contextlib.suppress(TimeoutError):
                self._keep(self._message(deadline, late=TimeoutError()))
                continue
            return None

    def _keep(self, untrusted: dict[str, Any]) -> None:
        if isinstance(name := untrusted.get("event"), str):
            data, at = untrusted.get("data"), untrusted.get("timestamp")
            seconds = _seconds(at) if isinstance(at, dict) else 0.0
            self._events.append(Event(name, data if isinstance(data, dict) else {}, seconds))

    def _send(self, request: bytes, descriptors: Sequence[int], deadline: float) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            self._bound(deadline)
            sent = self._socket.sendmsg([request], rights)
            if sent < len(request):
                self._socket.sendall(request[sent:])
        except (TimeoutError, BlockingIOError) as cause:
            raise self._silent() from cause
        except OSError as cause:
            raise _ended() from cause

    def _message(self, deadline: float, late: Exception | None = None) -> dict[str, Any]:
        """The next message. Raises ``late`` (by default: that QEMU is silent) when there is none by ``deadline``."""
        while (message := self._received_message()) is None:
            try:
                self._bound(deadline)
                self._receive()
            except (TimeoutError, BlockingIOError) as cause:
                raise late or self._silent() from cause
        return message

    def _receive(self) -> None:
        """One piece. Raises TimeoutError or BlockingIOError as the socket does."""
        try:
            untrusted_piece = self._socket.recv(1 << 16)
        except (TimeoutError, BlockingIOError):
            raise
        except OSError as cause:
            raise _ended() from cause
        if not untrusted_piece:
            raise _ended()
        self._received += untrusted_piece

    def _received_message(self) -> dict[str, Any] | None:
        """The next message of those received; None when there is none whole."""
        end = self._received.find(b"\n")
        if end < 0:
            if len(self._received) > _LONGEST_LINE:
                raise nonsense("a line without end")
            return None
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        try:
            return msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.MsgspecError, RecursionError) as cause:
            raise nonsense(str(cause)) from cause

    def _bound(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)

    def _silent(self) -> InsulaError:
        return InsulaError(f"QEMU did not answer within {self._patience:g} s", code="monitor_timeout")


def _seconds(untrusted: dict[str, Any]) -> float:
    """QMP's timestamp."""
    with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
        return float(untrusted["seconds"]) + float(untrusted["microseconds"]) / 1e6
    return 0.0


def _ended() -> MachineEnded:
    return MachineEnded("the machine is not running", code="machine_ended")


def nonsense(what: str) -> InsulaError:
    """The error for an answer that cannot be."""
    return InsulaError(f"QEMU's monitor answered nonsense: {clean(what)}", code="monitor_failed")
