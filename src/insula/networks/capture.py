"""A pcap stream of what passes a card, for Wireshark and tcpdump.

The format is that of draft-ietf-opsawg-pcap: a header, then each packet behind its time and length.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Final

from insula.model.streams import Sink
from insula.networks.fabric import capture_socket
from insula.store.names import Home

_MAGIC: Final = 0xA1B2C3D4  # times in microseconds
_SNAP: Final = 262144
_ETHERNET: Final = 1
_LOOK: Final = 500  # milliseconds between two looks whether the machine is still there


def capture_to(home: Home, key: str, sink: Sink, goes_on: Callable[[], bool]) -> None:
    """Write what passes the card with this key to ``sink`` until nobody reads it any more or ``goes_on`` says no.

    Raises NotFound (``not_attached``), HostLacks.
    """
    with contextlib.suppress(BrokenPipeError), capture_socket(home, key) as frames:
        _write(sink, struct.pack("<IHHiIII", _MAGIC, 2, 4, 0, 0, _SNAP, _ETHERNET))
        while goes_on():
            if select.select([frames], [], [], _LOOK / 1000)[0]:
                with contextlib.suppress(BlockingIOError):
                    _write(sink, _packet(frames, time.time_ns()))


def _write(sink: Sink, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        taken = sink.write(rest)
        rest = rest[taken:]
        if rest and (descriptor := sink.fileno()) is not None:
            select.select([], [descriptor], [])


def _packet(frames: socket.socket, now: int) -> bytes:
    frame = frames.recv(_SNAP, socket.MSG_TRUNC)
    seconds, rest = divmod(now // 1000, 1_000_000)
    return struct.pack("<IIII", seconds, rest, len(frame), len(frame)) + frame
