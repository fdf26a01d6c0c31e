"""Stamps what comes by a connection: when, by this computer's clock, each piece was read. Run, never imported.

python -I stamp.py DESCRIPTOR

A process of its own, so that nothing it shares an interpreter with delays it. When stdin ends it writes all stamps to stdout,
seconds of CLOCK_MONOTONIC as doubles, and ends.
"""

import array
import contextlib
import os
import select
import sys
import time


def main(descriptor: int) -> None:
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)  # what is measured is the guest, not how long we wait for a CPU
    stamps = array.array("d")
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    poller.register(0, select.POLLIN | select.POLLHUP)
    while all(ready != 0 for ready, _ in poller.poll()):
        if not os.read(descriptor, 65_536):
            break
        stamps.append(time.monotonic())
    sys.stdout.buffer.write(stamps.tobytes())


if __name__ == "__main__":
    main(int(sys.argv[1]))
