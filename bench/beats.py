"""A program in a guest that gives a sign of life, and the signs as they came to this computer."""

from __future__ import annotations

import array
import bisect
import functools
import itertools
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from bench import ROOT
from bench.hand import AgentClient
from bench.world import built

INSIDE = "/tmp/beat"
_SETTLE = 1.0  # seconds after which a program has begun, and an emulator has translated it


@functools.cache
def program() -> Path:
    """`beat.c`, built for this computer's guests."""
    return built("beat")


class Beats:
    """``beat WHAT`` in the guest behind ``client``, whose connection belongs to it from now on. A context manager."""

    def __init__(self, client: AgentClient, what: str) -> None:
        client.begin(INSIDE, what)
        words = [sys.executable, "-I", str(ROOT / "bench" / "stamp.py"), str(client.fileno())]
        self._stamper = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[client.fileno()])
        self._client = client

    def __enter__(self) -> Beats:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stamper.kill()
        self._stamper.wait()

    def end(self) -> Stamps:
        """All signs there were. None comes afterwards."""
        content, _ = self._stamper.communicate()
        stamps = array.array("d")
        stamps.frombytes(content)
        return Stamps(stamps)


class Stamps:
    """When signs came, in seconds of `time.monotonic`."""

    def __init__(self, at: array.array[float]) -> None:
        self._at = at

    def silence(self, begin: float, end: float) -> float:
        """The longest time between one sign and the next, of those that reach into this span."""
        first = max(0, bisect.bisect_left(self._at, begin) - 1)
        last = bisect.bisect_right(self._at, end) + 1
        return max(later - sooner for sooner, later in itertools.pairwise(self._at[first:last]))

    def rate(self, begin: float, end: float) -> float:
        """Signs a second."""
        return (bisect.bisect_right(self._at, end) - bisect.bisect_left(self._at, begin)) / (end - begin)
