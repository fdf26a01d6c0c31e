"""Whether this host can make a fabric, and how: found out by trying (`reach`), and remembered until the host boots again, or what
it rests on changes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final, Literal

import msgspec

from insula.errors import InsulaError
from insula.host.process import find_program
from insula.store.names import Home
from insula.store.records import read_record, write_record

_NOTE: Final = "reach.json"  # in host/
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_RESTS_ON: Final = ("ip", "tc", "nft", "dnsmasq", "pasta", "/dev/net/tun")


class Ability(msgspec.Struct, frozen=True):
    """``kind``: how a fabric is made here; with none, ``why`` there is none. ``key``: when, by whom, with what."""

    kind: Literal["root", "rootless", "none"]
    why: str = ""
    key: str = ""


def probe(home: Home) -> Ability:
    """What this host can do. The first time it takes some hundredths of a second."""
    key = _key()
    path = home.host / _NOTE
    with contextlib.suppress(OSError, InsulaError):
        noted = read_record(path, Ability)
        if noted.key == key:
            return noted
    from insula.networks.reach import find_reach

    reach = find_reach()
    found = Ability(reach.kind, reach.reason, key)
    # What failed may have failed for want of time; what is missing is seen by the key.
    if found.kind != "none" or reach.lasting:
        with contextlib.suppress(OSError, InsulaError):  # then it is tried again next time
            write_record(path, found)
    return found


def _key() -> str:
    words = [_BOOT.read_text().strip(), str(os.geteuid())]
    for name in _RESTS_ON:
        path = name if name.startswith("/") else find_program(name)
        try:
            status = os.stat(path or name)
            words.append(f"{status.st_ino}:{status.st_mode:o}:{status.st_mtime_ns if path != '/dev/net/tun' else 0}")
        except OSError:
            words.append("absent")
    return " ".join(words)
