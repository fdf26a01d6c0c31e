"""Switches of the host (sysctls) that must be on while fabrics of root are joined to it: those that make it forward.

What they were before is kept in a file of the host, for there may be fabrics of several homes. The last of them sets back what
nobody else has changed meanwhile.

With the switches for all, the kernel turns those of each link, too (Documentation/networking/ip-sysctl.rst: ip_forward), and
whether redirects are believed: which they were before is kept, and set back, as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from insula.errors import HostLacks
from insula.host import links
from insula.store.locks import folder_lock

_FOLDER: Final = Path("/run/insula")
_FILE: Final = "switches.json"
_ROOT: Final = Path("/proc/sys/net")
_FORWARDING: Final = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
# What the kernel turns along with each of them, where there is one.
_ALONG: Final = {
    "ipv4/ip_forward": ("ipv4/conf/*/forwarding", "ipv4/conf/all/accept_redirects"),
    "ipv6/conf/all/forwarding": ("ipv6/conf/*/forwarding",),
}
_ACCEPT_RA: Final = "accept_ra"
_LINKS: Final = Path("/sys/class/net")
_OURS: Final = re.compile(r"v[0-9a-f]{8}")  # as `naming.host_link`


def turn_on() -> None:
    """Make the host forward. Raises HostLacks (``no_forwarding``)."""
    _FOLDER.mkdir(mode=0o700, exist_ok=True)
    with folder_lock(_FOLDER):
        former = _former()
        now = {name: value for name in (*_router_switches(), *_FORWARDING) if (value := _read(name)) is not None}
        off = {name: value for name, value in now.items() if value != _wanted(name)}
        known = {**_along(off), **off, **former}
        (_FOLDER / _FILE).write_text(json.dumps(known))  # before: whoever comes after a crash knows what to set back
        for name in off:
            _turn(name, _wanted(name))


def turn_back() -> None:
    """Undo `turn_on`, unless another home's fabric is joined to the host."""
    if not _FOLDER.is_dir():
        return
    with folder_lock(_FOLDER):
        if any(_OURS.fullmatch(name) for name in os.listdir(_LINKS)):
            return
        former = _former()
        along = _along(former)
        for name, value in reversed(former.items()):
            if name not in along and _read(name) == _wanted(name):
                _turn_if_we_may(name, value)
                _turn_along(name, former)
        (_FOLDER / _FILE).unlink(missing_ok=True)


def _along(names: Collection[str]) -> dict[str, str]:
    """What the kernel turns when the switches ``names`` are turned, and how it is now."""
    places = [place for name in names for pattern in _ALONG.get(name, ()) for place in sorted(_ROOT.glob(pattern))]
    found = {str(place.relative_to(_ROOT)): _read(str(place.relative_to(_ROOT))) for place in places}
    return {name: value for name, value in found.items() if value is not None and name not in _FORWARDING}


def _turn_along(name: str, former: Mapping[str, str]) -> None:
    """Set back what the kernel has turned along with ``name``."""
    for along, now in _along([name]).items():
        if along in former and former[along] != now:
            _turn_if_we_may(along, former[along])


def _turn_if_we_may(name: str, value: str) -> None:
    with contextlib.suppress(HostLacks):
        _turn(name, value)


def _former() -> dict[str, str]:
    try:
        found = json.loads((_FOLDER / _FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def _wanted(name: str) -> str:
    return "2" if name.endswith(_ACCEPT_RA) else "1"


def _router_switches() -> list[str]:
    """A host that forwards IPv6 no longer learns its own way out from routers, unless told that it shall (2): those that do now.

    These are turned before it forwards, so that nothing it learned is forgotten.
    """
    switches = [f"ipv6/conf/{name}/{_ACCEPT_RA}" for name in sorted(links.learned_from_routers())]
    return [switch for switch in switches if _read(switch) == "1"]


def _read(name: str) -> str | None:
    try:
        return (_ROOT / name).read_text().strip()
    except OSError:
        return None  # a kernel without IPv6, or a link that is gone


def _turn(name: str, value: str) -> None:
    try:
        (_ROOT / name).write_text(value)
    except OSError as cause:
        raise HostLacks(
            f"this host does not let us set net/{name}: {cause.strerror}",
            code="no_forwarding",
            hint=f"run: sysctl -w net.{name.replace('/', '.')}={value}",
        ) from None
