"""One-machine segments as the kernel has them: what `segments` says is made so here, in a namespace with a holder of its own.

For the fabric the card of such a machine is one like others; only that not its tap hangs in the network's bridge, but the end of
a pair of links of the same name.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from insula.host import links, nft
from insula.host.files import remove_tree
from insula.host.holder import ROOM, SERVER_RIGHTS, Holder, Program, connect_holder, start_holder
from insula.host.process import require_program
from insula.isolation.server import start_server
from insula.isolation.uids import service_id
from insula.networks import dns, naming, segments
from insula.networks import names as dnsmasq
from insula.networks.ground import Fabric
from insula.networks.plan import Attached
from insula.store import names

_DNSMASQ: Final = "dnsmasq"


def is_lone(attached: Attached) -> bool:
    """Whether a card's machine is in a segment of its own."""
    return attached.segment is not None


def open_tap(fabric: Fabric, attached: Attached) -> int:
    """Make a card's segment, joined to the fabric; the tap's descriptor. Raises HostLacks."""
    socket = _socket(fabric, attached.nic.key)
    socket.parent.mkdir(mode=0o700, exist_ok=True)
    user = fabric.holder.spaces.user
    holder, _ = start_holder(socket, own_user=user is not None, owner=user)
    with holder:
        tap = holder.tap(naming.tap_name(attached.nic.key))
        try:
            path = f"/proc/self/fd/{holder.spaces.net}"
            links.apply("ip", segments.pair_links(attached, path), fabric.holder.spaces, pass_fds=[holder.spaces.net])
            _furnish(fabric, attached, holder)
        except BaseException:
            os.close(tap)
            holder.quit()
            raise
    return tap


def _furnish(fabric: Fabric, attached: Attached, holder: Holder) -> None:
    links.apply("ip", segments.inside_links(attached), holder.spaces, tolerated=links.THERE)
    for name, value in segments.inside_sysctls(attached).items():
        holder.sysctl(name.removeprefix("net/"), value)
    nft.apply(segments.inside_rules(attached), holder.spaces)
    folder = _folder(fabric, attached.nic.key)
    dnsmasq.write_lone(folder, segments.inside_dnsmasq(attached))
    if _DNSMASQ not in holder.children():
        argv = (require_program("dnsmasq"), *dns.dnsmasq_argv(ROOM)[1:])
        program = Program(argv, uid=service_id(f"segment-{attached.nic.key}"), rights=SERVER_RIGHTS, folder=folder)
        log = os.open(dnsmasq.log_file(folder), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            start_server(holder, _DNSMASQ, program, log)
        finally:
            os.close(log)


def mend(fabric: Fabric, attached: Attached) -> bool:
    """Make a segment what it should be; False when its tap is gone."""
    socket = _socket(fabric, attached.nic.key)
    user = fabric.holder.spaces.user
    holder = connect_holder(socket)
    if holder is None:
        if not socket.exists():
            return False
        holder, _ = start_holder(socket, own_user=user is not None, owner=user)
    with holder:
        inside = links.counters(holder.spaces)
        if naming.tap_name(attached.nic.key) not in inside:
            return False
        if naming.UPLINK not in inside:
            path = f"/proc/self/fd/{holder.spaces.net}"
            links.apply("ip", segments.pair_links(attached, path), fabric.holder.spaces, pass_fds=[holder.spaces.net])
        _furnish(fabric, attached, holder)
    return True


def end(home: names.Home, key: str) -> None:
    """End a card's segment; nothing happens when there is none."""
    folder = home.fabric / names.FABRIC_SEGMENTS
    holder = connect_holder(folder / f"{key}.sock")
    if holder is not None:
        with holder:
            holder.quit()
    (folder / f"{key}.sock").unlink(missing_ok=True)
    dnsmasq.log_file(folder / key).unlink(missing_ok=True)
    remove_tree(folder / key)


def _socket(fabric: Fabric, key: str) -> Path:
    return fabric.folder / names.FABRIC_SEGMENTS / f"{key}.sock"


def _folder(fabric: Fabric, key: str) -> Path:
    return fabric.folder / names.FABRIC_SEGMENTS / key
