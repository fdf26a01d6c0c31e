"""What `show` prints of a machine, in words that need no book."""

from __future__ import annotations

from insula.cli.details import _traffic
from insula.model.status import TrafficStatus


def card(rules: dict[str, int], **sums: int) -> TrafficStatus:
    counts = {"received": 2048, "sent": 90, "packets_received": 40, "packets_sent": 1, "drops": 0} | sums
    return TrafficStatus(machine="web", network="nat", mac="52:54:00:01:02:03", rules=rules, **counts)


def test_what_passed_a_card_is_told_with_what_became_of_it() -> None:
    quiet = "nat (2.0 KiB in, 40 packets; 90 B out, 1 packet)"
    assert _traffic(card({"spoofed": 0, "deny to any": 0})) == quiet
    told = _traffic(card({"spoofed": 3, "egress": 1, "deny to any": 2}, drops=5))
    assert told == quiet[:-1] + (
        "; 5 dropped; 3 packets refused, sent from addresses that are not its own; 1 packet refused by its profile; "
        "2 packets met deny to any)"
    )
