"""Gets packages from the signed archive into the room: mmdebstrap, run as the room's root."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal

from insula.host.process import require_program
from insula.host.uplink import host_proxies
from insula.images.mirror import Mirror, archive_lines, require_keyring
from insula.images.room import Room

Variant = Literal["extract", "apt"]

# Mirror lists are written by us; documentation of packages stays out, licences stay in.
DPKG_OPTIONS: Final = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
)


def bootstrap(
    room: Room,
    tree: str,
    *,
    variant: Variant,
    suite: str,
    arch: str,
    mirror: Mirror,
    packages: Sequence[str] = (),
    extra_suites: Sequence[str] = (),
    hooks: Sequence[str] = (),
    fraction: float,
    until: float,
) -> None:
    """Fill the folder ``tree`` (of the room) with ``packages`` and all they need.

    ``extract`` only unpacks them, ``apt`` installs a base system. ``hooks`` are further arguments for mmdebstrap. The work is
    reported as the part from ``fraction`` to ``until`` of the whole. Raises HostLacks (``keyring_missing``,
    ``archive_unreachable``, ``archive_untrusted``, ``no_space``), ChildFailed, Interrupted.
    """
    require_program("mmdebstrap")
    require_keyring()
    lines = archive_lines(mirror, suite, extra_suites)
    arguments = ["mmdebstrap", "--mode=root", f"--variant={variant}", "--format=directory", f"--architectures={arch}"]
    arguments += [f"--include={','.join(packages)}"] if packages else []
    arguments += [f"--aptopt={_give_settings(room, fraction)}", *(f"--dpkgopt={option}" for option in DPKG_OPTIONS)]
    arguments += ["--skip=chroot/mount/sys", *hooks, suite, tree]
    if lines:
        arguments.append("-")
    data = "\n".join(lines).encode() + b"\n" if lines else None
    room.run(arguments, step="getting packages", fraction=fraction, data=data, measure=AptMeter(fraction, until))


class AptMeter:
    """How far apt is, told by its lines: it says how many packages there will be, then names each twice."""

    _TOTAL = re.compile(r"(\d+) newly installed")

    def __init__(self, start: float, end: float) -> None:
        self._start, self._end = start, end
        self._total, self._seen = 0, 0

    def __call__(self, line: str) -> float:
        if match := self._TOTAL.search(line):
            self._total = max(self._total, 2 * int(match[1]))
        elif line.startswith(("Unpacking ", "Setting up ")):
            self._seen += 1
        done = min(1.0, self._seen / self._total) if self._total else 0.0
        return self._start + (self._end - self._start) * done


def _give_settings(room: Room, fraction: float) -> str:
    """Put apt's settings in a file that only the room's root may read; its path. A proxy's address may hold a password."""
    path = "/work/apt.conf"
    room.script('umask 077; cat >"$1"', path, step="getting packages", fraction=fraction, data=apt_settings(host_proxies()))
    return path


def apt_settings(proxies: str) -> bytes:
    """apt.conf(5) for the build: no recommendations, and the host's own ``proxies`` (in the same form), if it has any."""
    return f'APT::Install-Recommends "false";\nAcquire::Languages "none";\nAcquire::Retries "3";\n{proxies}\n'.encode()
