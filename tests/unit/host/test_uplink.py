"""Which resolver a network of its own can use."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula.host.uplink import outside_resolver


@pytest.mark.parametrize(
    ("text", "usable"),
    [
        ("nameserver 192.0.2.1\n", True),
        ("# nameserver 192.0.2.1\nsearch example\n", False),
        ("nameserver 127.0.0.53\noptions edns0\n", False),
        ("nameserver ::1\n", False),
        ("nameserver 127.0.0.1\nnameserver 192.0.2.1\n", True),
        ("nameserver fe80::1%eth0\n", True),
        ("nameserver\nnameserver nonsense\n", False),
        ("", False),
    ],
)
def test_only_a_server_off_the_loopback_can_be_reached(tmp_path: Path, text: str, usable: bool) -> None:
    (tmp_path / "resolv.conf").write_text(text)
    expected = tmp_path / "resolv.conf" if usable else None
    assert outside_resolver((tmp_path / "resolv.conf",)) == expected


def test_the_file_behind_a_stub_is_taken(tmp_path: Path) -> None:
    stub, uplink = tmp_path / "stub", tmp_path / "uplink"
    stub.write_text("nameserver 127.0.0.53\n")
    uplink.write_text("nameserver 192.0.2.1\n")
    assert outside_resolver((tmp_path / "absent", stub, uplink)) == uplink
