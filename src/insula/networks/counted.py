"""What is on a fabric now, and what passed each of its cards."""

from __future__ import annotations

import msgspec

from insula.host import links, nft
from insula.networks import lan, naming
from insula.networks.ground import (
    Fabric,
    attached_cards,
    expected,
    opened,
)
from insula.networks.plan import Attached
from insula.store import names


class CardStatus(msgspec.Struct, frozen=True):
    """What went through a card, as its machine sees it, and what its rules counted: packets and bytes by the rule's name."""

    attached: Attached
    present: bool
    sent_bytes: int = 0
    sent_packets: int = 0
    sent_dropped: int = 0
    received_bytes: int = 0
    received_packets: int = 0
    received_dropped: int = 0
    counters: dict[str, tuple[int, int]] = {}


class Status(msgspec.Struct, frozen=True):
    """A home's fabric. ``missing``: programs that should run and do not (`repair` starts them)."""

    running: bool
    cards: dict[str, CardStatus] = {}
    missing: tuple[str, ...] = ()


def status(home: names.Home) -> Status:
    """What hangs in networks and how it fares; never waits for who changes them. Raises HostLacks."""
    cards = attached_cards(home)
    direct = links.counters() if any(map(lan.is_direct, cards.values())) else {}
    with opened(home) as fabric:
        seen = links.counters(fabric.holder.spaces) if fabric is not None else {}
        counted = _counters(fabric) if fabric is not None else {}
        missing = expected(fabric) - fabric.running if fabric is not None else ()
    found = {}
    for key, card in cards.items():
        link = direct.get(naming.macvtap_name(key)) if lan.is_direct(card) else seen.get(naming.tap_name(key))
        found[key] = _card_status(card, link, counted.get(key, {}))
    return Status(fabric is not None, found, tuple(sorted(missing)))


def _card_status(card: Attached, link: links.Counted | None, counted: dict[str, tuple[int, int]]) -> CardStatus:
    if link is None:
        return CardStatus(card, present=False, counters=counted)
    # A tap receives what its machine sends; a machine's own link on a card of the host is its own side.
    sent, received = (link.sent, link.received) if lan.is_direct(card) else (link.received, link.sent)
    return CardStatus(card, True, *sent, *received, counted)


def _counters(fabric: Fabric) -> dict[str, dict[str, tuple[int, int]]]:
    """By card, then by what was counted."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for each in nft.objects(fabric.holder.spaces, "counters"):
        if counter := each.get("counter"):
            what, _, key = counter["name"].rpartition("_")
            packets, size = found.setdefault(key, {}).get(what, (0, 0))
            found[key][what] = packets + counter["packets"], size + counter["bytes"]
    return found
