"""Which networks this host can have: tried in a fabric of its own, which is gone afterwards."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Final, Literal

import msgspec

from insula.errors import ChildFailed, HostLacks
from insula.host import links, nft
from insula.host.facts import Probe
from insula.host.holder import Holder, start_brief_holder
from insula.host.process import find_program
from insula.model.doctor import Fact, FactState
from insula.networks import naming, rules, uplinks
from insula.networks.names import last_words

Kind = Literal["root", "rootless", "none"]

_PROGRAMS: Final = ("ip", "tc", "nft", "dnsmasq")
_NAME: Final = "networks"
_COSTS: Final = "no networks among machines; NAT through passt works"
_ADMINISTER: Final = 1 << 12  # CAP_NET_ADMIN, as in /proc/self/status
_PATIENCE: Final = 5.0  # seconds for pasta to make its link, or to end


class Reach(msgspec.Struct, frozen=True):
    """``root``: all kinds of networks. ``rootless``: private ones and NAT. ``none``: NAT by passt for each machine alone.

    ``reason`` says why it is not more, ``fix`` the command that would help, if one does. ``lasting``: trying again is no use.
    """

    kind: Kind
    reason: str = ""
    fix: str = ""
    lasting: bool = False


def find_reach() -> Reach:
    """Try it: a tap, a bridge, our rules and the uplink, in namespaces made for it. Takes some hundredths of a second."""
    root = os.geteuid() == 0
    needed = _PROGRAMS if root else (*_PROGRAMS, "pasta")
    if absent := [name for name in needed if find_program(name) is None]:
        return Reach("none", f"not installed: {', '.join(absent)}", "insula doctor --fix", lasting=True)
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        there = os.path.exists("/dev/net/tun")
        why = "is closed to this user" if there else "is not there"
        return Reach("none", f"/dev/net/tun {why}", "sudo chmod 666 /dev/net/tun" if there else "sudo modprobe tun", lasting=True)
    if root and not _may_administer():
        return Reach("none", "this root may not change the host's network (no CAP_NET_ADMIN)")
    try:
        return _try(root=root)
    except (HostLacks, ChildFailed) as refusal:
        return Reach("none", refusal.message)


def _may_administer() -> bool:
    lines = Path("/proc/self/status").read_text().splitlines()
    return any(int(line.split()[1], 16) & _ADMINISTER for line in lines if line.startswith("CapEff:"))


def _try(*, root: bool) -> Reach:
    with start_brief_holder(own_user=not root) as holder:
        try:
            os.close(holder.tap(naming.tap_name("00000000")))
            links.apply("ip", [f"link add name {naming.bridge_name('00000000')} type bridge"], holder.spaces)
            nft.apply(rules.base_rules(None, []), holder.spaces)
            why = "" if root else _try_pasta(holder)
        finally:
            holder.quit()
    return Reach("none", why) if why else Reach("root" if root else "rootless")


def _try_pasta(holder: Holder) -> str:
    """Why pasta makes no link, if it makes none."""
    log = os.memfd_create("pasta.log")
    try:
        uplinks.start_pasta("00000000", holder, log)
        return _await_uplink(holder, Path(f"/proc/self/fd/{log}"))
    finally:
        os.close(log)


def _await_uplink(holder: Holder, log: Path) -> str:
    """The kernel offers no event for another namespace's links."""
    end = time.monotonic() + _PATIENCE
    while naming.UPLINK not in links.counters(holder.spaces):
        if uplinks.PASTA not in holder.children():
            return f"pasta ended: {last_words(log)}"
        if time.monotonic() > end:
            return "pasta made no link"
        threading.Event().wait(0.02)
    return ""


def _fact() -> Fact:
    reach = find_reach()
    if reach.kind == "root":
        return Fact(_NAME, FactState.OK, "private, NAT and bridged networks can be made")
    if reach.kind == "rootless":
        return Fact(_NAME, FactState.OK, "private and NAT networks can be made, without root (bridged ones only by root)")
    return Fact(_NAME, FactState.LIMITED, reach.reason, _COSTS, reach.fix)


PROBE: Final = Probe(_NAME, _fact, (*_PROGRAMS, "pasta", "/dev/net/tun"))
