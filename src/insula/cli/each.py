"""One command in several machines at once, each line of output labelled with its machine."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from typing import BinaryIO

from insula.cli.common import client
from insula.client.ends import PassedSignals
from insula.client.streams import CallbackStreams
from insula.errors import InsulaError
from insula.model.requests import ExecMachine

_LONGEST = 64 * 1024  # bytes of a line that are kept until its end comes


class Labelled:
    """An output that passes on whole lines, each with ``label`` before it. Several may share a ``stream``."""

    _writing = threading.Lock()

    def __init__(self, label: str, stream: BinaryIO) -> None:
        self._label = label.encode()
        self._stream = stream
        self._rest = b""

    def write(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST:
            self.finish(lines)
        elif lines:
            self._write(lines)

    def finish(self, lines: Sequence[bytes] = ()) -> None:
        """Also what is no whole line."""
        rest, self._rest = self._rest, b""
        if lines or rest:
            self._write([*lines, rest] if rest else lines)

    def _write(self, lines: Sequence[bytes]) -> None:
        with self._writing:
            self._stream.write(b"".join(self._label + line + b"\n" for line in lines))
            self._stream.flush()


def run_in_each(requests: Sequence[ExecMachine], ended: Callable[[str], None], as_json: bool) -> int:
    """Run all ``requests`` side by side; ``ended`` is called with the machine's name after each.

    Signals we get go to all. Returns the first exit code that is not 0, in the order of ``requests``; raises Interrupted.
    """
    width = max(len(request.name) for request in requests)
    runs = [_Run(request, request.name.ljust(width), ended, as_json) for request in requests]

    def pass_on(name: str) -> None:
        for run in runs:
            run.streams.signal(name)

    signals = PassedSignals(pass_on)
    try:
        for run in runs:
            run.start()
        for run in runs:
            run.join()
    finally:
        signals.restore()
    return next((run.code for run in runs if run.code != 0), 0)


class _Run(threading.Thread):
    """A daemon, so that who insists on an end need not wait for a guest."""

    def __init__(self, request: ExecMachine, label: str, ended: Callable[[str], None], as_json: bool) -> None:
        super().__init__(name=request.name, daemon=True)
        self.code = 1
        self._request, self._ended, self._as_json = request, ended, as_json
        self._outputs = [Labelled(f"{label} | ", stream) for stream in (sys.stdout.buffer, sys.stderr.buffer)]
        self.streams = CallbackStreams(*(output.write for output in self._outputs))

    def run(self) -> None:
        from insula.cli.main import guest_code, report

        self.streams.end_input()
        try:
            with self.streams:
                self.code = int(client().do(self._request, self.streams).shell_code)
            for output in self._outputs:
                output.finish()
        except InsulaError as error:
            words = f"{self._request.name}: {error.message}"
            self.code = report(error.code, words, error.hint, self._as_json, guest_code(error), cause=error)
        except BrokenPipeError:
            self.code = 0  # nobody reads the rest of what it said
        finally:
            self._ended(self._request.name)
