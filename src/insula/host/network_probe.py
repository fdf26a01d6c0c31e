"""Make a tap and a bridge, and say as JSON what stood in the way; an empty answer means that the thing was made.

A program, not a module: ``facts.py`` runs it in a network namespace of its own, which takes all it made with it.
"""

import fcntl
import json
import os
import socket
import struct
import sys

_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_IFF_TAP_NO_PI = 0x0002 | 0x1000
_SIOCBRADDBR = 0x89A0  # linux/sockios.h


def try_tap() -> None:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    # struct ifreq: name, flags, padding
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"insprobe0", _IFF_TAP_NO_PI))
    os.close(device)


def try_bridge() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCBRADDBR, b"insprobe1\0")


def main() -> None:
    answers = {}
    for name, attempt in (("tap", try_tap), ("bridge", try_bridge)):
        try:
            attempt()
            answers[name] = ""
        except OSError as refusal:
            answers[name] = refusal.strerror or str(refusal)
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
