"""Where packages come from: the host's own Debian mirror, and nobody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula.images.mirror import KEYRING, Mirror, archive_lines, host_mirror


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_one_line_form(etc: Path) -> None:
    (etc / "sources.list").write_text(
        "# deb http://no.example/debian trixie main\n"
        "deb-src http://src.example/debian trixie main\n"
        "deb [arch=amd64 signed-by=/x] http://mirror.example/debian/ bookworm main contrib # near\n"
        "deb http://security.example/debian-security bookworm-security main\n"
    )
    assert host_mirror(etc) == Mirror("http://mirror.example/debian", "http://security.example/debian-security")


def test_deb822_form(etc: Path) -> None:
    (etc / "sources.list.d" / "debian.sources").write_text(
        "Types: deb\n# a remark\nURIs: https://mirror.example/debian\n  https://second.example/debian\n"
        "Suites: trixie trixie-updates\nComponents: main\n\n"
        "Types: deb\nEnabled: no\nURIs: http://off.example/x\nSuites: trixie-security\nComponents: main\n\n"
        "Types: deb deb-src\nURIs: http://security.example/s\nSuites: trixie-security\nComponents: main\n"
    )
    assert host_mirror(etc) == Mirror("https://mirror.example/debian", "http://security.example/s")


@pytest.mark.parametrize(
    "line",
    [
        "deb http://packages.example/apt stable-of-theirs main",
        "deb http://ubuntu.example/ubuntu noble main",
        "deb http://mirror.example/debian trixie contrib",
        "deb http://me:secret@mirror.example/debian trixie main",
        "deb cdrom:[Debian]/ trixie main",
        "deb file:/srv/mirror trixie main",
        "deb http://flat.example/ ./",
        "nonsense",
    ],
)
def test_others_are_skipped(etc: Path, line: str) -> None:
    (etc / "sources.list").write_text(f"{line}\n")
    assert host_mirror(etc) == Mirror()


def test_no_configuration_at_all(tmp_path: Path) -> None:
    assert host_mirror(tmp_path / "absent") == Mirror()


def test_lines_for_a_suite() -> None:
    mirror = Mirror("http://m/debian", "http://s/security")
    signed = f"deb [signed-by={KEYRING}]"
    assert archive_lines(mirror, "bookworm", ["bookworm-backports"]) == [
        f"{signed} http://m/debian bookworm main",
        f"{signed} http://m/debian bookworm-updates main",
        f"{signed} http://m/debian bookworm-backports main",
        f"{signed} http://s/security bookworm-security main",
    ]
    assert archive_lines(mirror, "sid") == [f"{signed} http://m/debian sid main"]
    assert archive_lines(Mirror(), "trixie") == []
