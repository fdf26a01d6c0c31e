"""Signs of life, as they came: silences and rates are of the span that is asked for."""

from __future__ import annotations

import array
import socket
import subprocess
import sys
import time

import pytest

from bench import ROOT
from bench.bars import BARS, _silence
from bench.beats import Stamps
from bench.pairs import Pairs
from insula.guest import wire
from insula.guest.wire import Frame


def stamps(*at: float) -> Stamps:
    return Stamps(array.array("d", at))


def test_the_longest_silence_is_that_between_two_signs() -> None:
    assert stamps(0, 1, 2, 5, 6, 7).silence(0.5, 6.5) == 3


@pytest.mark.parametrize(("begin", "end"), [(3.5, 10), (0, 3.5), (3.2, 4.8)])
def test_a_silence_that_reaches_into_the_span_counts_whole(begin: float, end: float) -> None:
    assert stamps(1, 2, 3, 5, 5.5, 6).silence(begin, end) == 2


def test_a_silence_outside_the_span_does_not_count() -> None:
    assert stamps(0, 10, 11, 12, 13, 30).silence(11.2, 12.1) == 1


def test_the_rate_is_of_the_span() -> None:
    assert stamps(*(number / 10 for number in range(100))).rate(2.05, 4.05) == 10


def test_each_byte_a_guest_wrote_is_stamped_when_it_comes_until_the_stamper_is_told_to_end() -> None:
    frames = wire.encode_frame(Frame(wire.CREDIT, 1, bytes(4))) + wire.encode_frame(Frame(wire.DATA, 1, b"bbb", wire.STDOUT))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        words = [sys.executable, "-I", str(ROOT / "bench" / "stamp.py"), str(theirs.fileno())]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[theirs.fileno()]) as stamper:
            begun = time.monotonic()
            for piece in (frames[:-2], frames[-2:]):
                ours.sendall(piece)
                while _waits(theirs):
                    time.sleep(0.001)  # nothing tells that the stamper took it
            content, _ = stamper.communicate()
    found = array.array("d")
    found.frombytes(content)
    assert len(found) == 3
    assert begun <= min(found)
    assert max(found) <= time.monotonic()


def _waits(connection: socket.socket) -> bool:
    """Whether something lies in ``connection`` that nobody has read."""
    try:
        return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


@pytest.mark.parametrize(
    ("ours", "theirs", "met"), [(0.010, 0.009, True), (0.010, 0.007, False), (0.041, 0.041, False), (0.040, 0.040, True)]
)
def test_a_silence_is_held_to_both_its_bars(ours: float, theirs: float, met: bool) -> None:
    row = _silence(BARS["heartbeat"], "2G-2-fork", Pairs((ours,) * 3, (theirs,) * 3))
    assert (row.name, row.met) == ("heartbeat-2G-2-fork", met)
    assert row.what.endswith("2G, 2 CPUs, fork")
