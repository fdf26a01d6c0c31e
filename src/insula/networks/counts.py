"""What passes cards, counted: for who looks every second, hence without a program being run and without a lock."""

from __future__ import annotations

import contextlib
import socket
from typing import Final

from insula.errors import HostLacks
from insula.host import links
from insula.host.holder import connect_holder
from insula.networks import lan, naming
from insula.networks.ground import attached_cards
from insula.networks.plan import Attached
from insula.resources.metrics import CardCounts
from insula.store import names

_NETLINK: Final = (socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)


def card_counts(home: names.Home) -> dict[str, dict[str, CardCounts]]:
    """By the machines' ids, their cards by key, as far as they hang now. Empty where nobody can tell."""
    cards = attached_cards(home)
    direct = _own() if any(map(lan.is_direct, cards.values())) else {}
    inside = _fabric(home) if not all(map(lan.is_direct, cards.values())) else {}
    found: dict[str, dict[str, CardCounts]] = {}
    for key, card in cards.items():
        if (counts := _counts(key, card, direct, inside)) is not None:
            found.setdefault(card.machine_id, {})[key] = counts
    return found


def _own() -> dict[str, links.Counted]:
    with socket.socket(*_NETLINK) as netlink:
        return links.counts(netlink)


def _fabric(home: names.Home) -> dict[str, links.Counted]:
    with contextlib.suppress(HostLacks):
        holder = connect_holder(home.fabric / names.HOLDER_SOCKET)
        if holder is not None:
            with holder, holder.socket(*_NETLINK) as netlink:
                return links.counts(netlink)
    return {}


def _counts(key: str, card: Attached, direct: dict[str, links.Counted], inside: dict[str, links.Counted]) -> CardCounts | None:
    is_direct = lan.is_direct(card)
    link = direct.get(naming.macvtap_name(key)) if is_direct else inside.get(naming.tap_name(key))
    if link is None:
        return None
    # A tap receives what its machine sends; a machine's own link on a card of the host is its own side.
    sent, received = (link.sent, link.received) if is_direct else (link.received, link.sent)
    return CardCounts(received[0], sent[0], received[1], sent[1], received[2], sent[2])
