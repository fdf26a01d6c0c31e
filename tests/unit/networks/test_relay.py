"""Which name servers are asked, and by which way."""

from __future__ import annotations

import pytest

from insula.networks.relay import parse_local


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("nameserver 127.0.0.53\n", ["127.0.0.53"]),
        ("search x\nnameserver ::1\nnameserver 0.0.0.0 # this host\nnameserver 127.0.0.1\n", ["::1", "127.0.0.1"]),
        ("nameserver 192.0.2.1\nnameserver\nnameserver nonsense\n", []),
        ("".join(f"nameserver 127.0.0.{each}\n" for each in range(1, 9)), ["127.0.0.1", "127.0.0.2", "127.0.0.3"]),
    ],
)
def test_servers_on_the_hosts_loopback_are_found(text: str, found: list[str]) -> None:
    assert parse_local(text) == found
