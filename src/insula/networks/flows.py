"""How many flows a machine may have open at once: the kernel's table of them is one for all, and who fills it cuts off the rest.

What machines of one network send each other is not followed and not counted. A table of its own; it is the same for all cards,
and loading it again changes no count.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from insula.networks import naming
from insula.networks.terms import Table

# A host follows 65536 to 262144 flows, as its memory is. A browser has a few hundred.
MOST: Final = 4096

# Seconds that a silent TCP connection is remembered (RFC 5382 asks for at least two hours and four minutes). The kernel's own
# five days would keep a machine that was switched off from its network for as long.
REMEMBERED: Final = 7440

# What is there only for packets that begin a flow ends here for all others, which are nearly all.
KNOWN: Final = "ct state != new accept"

_NAME: Final = f"{naming.TABLE}_flows"
TABLE: Final = Table("inet", _NAME)


def patience(family: str, table: str) -> list[str]:
    """In ``table``: what `remembered` names."""
    policy = f"policy = {{ established : {REMEMBERED} }}"
    return [
        f"add ct timeout {family} {table} patience{version[2:]} {{ protocol tcp; l3proto {version}; {policy}; }}"
        for version in ("ip", "ip6")
    ]


def remembered(first: str) -> Iterable[str]:
    """Rules, behind `KNOWN`: a TCP connection that fits ``first`` is forgotten in time."""
    for version, name in (("ipv4", "patience"), ("ipv6", "patience6")):
        yield f'{first} meta nfproto {version} meta l4proto tcp ct timeout set "{name}"'


def base() -> list[str]:
    """All of it, for the fabric; to be loaded before the first card is there, or again."""
    where = f"inet {_NAME}"
    ours = f'iifname "{naming.BRIDGES}"'
    rules = [KNOWN, f"{ours} add @flows {{ meta mark ct count over {MOST} }} drop", *remembered(ours)]
    return [
        TABLE.add(),
        f"add set {where} flows {{ type mark; size 65536; flags dynamic; }}",
        *patience("inet", _NAME),
        # After the kernel has found the flow that a packet is of, before anything is decided about it.
        f"add chain {where} begun {{ type filter hook prerouting priority mangle; }}",
        f"flush chain {where} begun",
        *[f"add rule {where} begun {rule}" for rule in rules],
    ]
