"""Cards of running machines that hang on nothing any more: what they hung on was killed, or has vanished. Looked at as quickly as
it goes, for all at once."""

from __future__ import annotations

import socket
from collections.abc import Collection
from typing import Final

from insula.errors import HostLacks
from insula.host import links
from insula.host.holder import connect_holder, is_held
from insula.model.network import Nic
from insula.networks import lan, naming
from insula.networks.passt import is_on_passt
from insula.store import names

CARD: Final = "its network card hangs on nothing; run: insula network repair"
LAN: Final = "the link of this host that its network is on has vanished; when it is there again, run: insula network repair"


def losses(home: names.Home, nics: Collection[Nic]) -> dict[str, str]:
    """By a card's key, what is wrong with it, in words; nothing of those that are as they should be.

    ``nics``: cards that should hang now.
    """
    ours = [nic for nic in nics if not is_on_passt(nic)]
    if not ours:
        return {}
    inside, found = _inside(home), {}
    for nic in ours:
        if links.exists(naming.macvtap_name(nic.key)):
            continue
        if inside is not None and naming.tap_name(nic.key) not in inside:
            found[nic.key] = CARD
        elif links.exists(naming.lan_host_link(nic.network)) and not lan.is_joined(nic.network):
            found[nic.key] = LAN
    return found


def _inside(home: names.Home) -> set[str] | None:
    """The links of the fabric; None where nobody says, though it lives: its holder was killed, and its cards hang on."""
    try:
        holder = connect_holder(home.fabric / names.HOLDER_SOCKET)
        if holder is None:
            return None if is_held(home.fabric / names.HOLDER_SOCKET) else set()
        with holder, holder.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
            return links.names(netlink)
    except HostLacks:
        return None
