"""Stamps what a program in a guest writes, by a connection to its agent: when, by this computer's clock, each byte was read.
Several may come at once. Run, never imported.

python -I stamp.py DESCRIPTOR

A process of its own, so that nothing it shares an interpreter with delays it. When stdin ends it writes all stamps to stdout,
seconds of CLOCK_MONOTONIC as doubles, and ends.
"""

import array
import contextlib
import os
import select
import struct
import sys
import time

_HEADER = struct.Struct("<2sBBII")  # docs/wire.md: magic, type, stream, channel, length
_DATA = 2


def _bytes_in(held: bytearray) -> int:
    """How many bytes the program wrote in the whole frames of ``held``, which are taken out."""
    found = 0
    while len(held) >= _HEADER.size and len(held) >= _HEADER.size + (length := _HEADER.unpack_from(held)[4]):
        found += length if _HEADER.unpack_from(held)[1] == _DATA else 0
        del held[: _HEADER.size + length]
    return found


def main(descriptor: int) -> None:
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)  # what is measured is the guest, not how long we wait for a CPU
    stamps = array.array("d")
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    poller.register(0, select.POLLIN | select.POLLHUP)
    held = bytearray()
    while all(ready != 0 for ready, _ in poller.poll()):
        data = os.read(descriptor, 65_536)
        if not data:
            break
        now = time.monotonic()
        held += data
        stamps.extend([now] * _bytes_in(held))
    sys.stdout.buffer.write(stamps.tobytes())


if __name__ == "__main__":
    main(int(sys.argv[1]))
