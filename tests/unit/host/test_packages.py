"""Which packages are missing, and the script that installs them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from insula.errors import HostLacks
from insula.host import packages
from insula.host.packages import Package, Plan, Purpose

BOOKWORM = 'ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n'
TRIXIE = 'ID=debian\nVERSION_ID="13"\nVERSION_CODENAME=trixie\n'
FRAME = Package("bubblewrap", "the jail", frozenset({Purpose.MACHINE}), ("bin:no-such-program",))
QEMU = Package("qemu-utils", "disks", frozenset({Purpose.MACHINE}), ("bin:no-such-program",), qemu=True)


def test_every_package_says_why_and_has_a_purpose() -> None:
    table = packages.packages()
    assert len({package.name for package in table}) == len(table)
    for package in table:
        assert package.why
        assert package.purposes
        assert package.files


def test_a_package_is_there_when_one_of_its_files_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys.pgp").touch()
    present = Package("present", "x", frozenset({Purpose.IMAGE}), ("/nonexistent", f"{tmp_path}/keys.*"))
    absent = Package("absent", "x", frozenset({Purpose.IMAGE}), (f"{tmp_path}/other.*",))
    program = Package("program", "x", frozenset({Purpose.IMAGE}), ("bin:sh",))
    other = Package("other", "x", frozenset({Purpose.TESTS}), ("bin:no-such-program",))
    monkeypatch.setattr(packages, "packages", lambda: (present, absent, program, other))
    assert packages.missing({Purpose.IMAGE}) == [absent]


@pytest.mark.parametrize(("version", "expected"), [((7, 2), [QEMU]), ((8, 2), []), ((10, 0), []), (None, [])])
def test_a_qemu_that_is_too_old_counts_as_missing(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int] | None, expected: list[Package]
) -> None:
    there = Package("qemu-utils", "disks", frozenset({Purpose.MACHINE}), ("bin:sh",), qemu=True)
    monkeypatch.setattr(packages, "packages", lambda: (there,))
    monkeypatch.setattr(packages, "qemu_version", lambda: version)
    assert [package.name for package in packages.missing({Purpose.MACHINE})] == [package.name for package in expected]


def test_debian_13_installs_all_from_its_own_archive() -> None:
    plan = packages.make_plan([FRAME, QEMU], TRIXIE)
    assert plan.backports is None
    assert "bubblewrap qemu-utils" in plan.script
    assert "backports" not in plan.script


def test_debian_12_takes_qemu_alone_from_its_backports() -> None:
    plan = packages.make_plan([FRAME, QEMU], BOOKWORM)
    assert plan.backports == "bookworm-backports"
    first, *_, last = (line for line in plan.script.splitlines() if " install " in line)
    assert first.endswith(" install bubblewrap")
    assert last.endswith(" install -t bookworm-backports qemu-utils")


def _run_script(script: str, folder: Path, configured: str) -> None:
    """Run a plan's script with an apt-get that writes down what it is told and answers indextargets from ``configured``."""
    apt = folder / "apt-get"
    apt.write_text(
        f'#!/bin/sh\necho "$@" >>{folder}/log\n'
        '[ "$1" = indextargets ] || exit 0\n'
        f'case "$*" in *"Release: bookworm-backports"*) {configured} ;; *) echo mirror://own/debian/ ;; esac\n'
    )
    apt.chmod(0o755)
    script = script.replace("/etc/apt/", f"{folder}/")
    subprocess.run(["sh", "-c", script], check=True, env={"PATH": f"{folder}:/usr/bin:/bin"})


def test_the_backports_have_the_address_of_the_hosts_own_archive(tmp_path: Path) -> None:
    for name in ("sources.list.d", "preferences.d"):
        (tmp_path / name).mkdir()
    _run_script(packages.make_plan([FRAME, QEMU], BOOKWORM).script, tmp_path, ":")
    assert (tmp_path / "sources.list.d/insula-backports.sources").read_text() == (
        "Types: deb\nURIs: mirror://own/debian/\nSuites: bookworm-backports\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )
    assert "Package: qemu-*\nPin: release n=bookworm-backports" in (tmp_path / "preferences.d/insula-backports").read_text()
    log = (tmp_path / "log").read_text().splitlines()
    assert log[-1].endswith("install -t bookworm-backports qemu-utils")
    assert "update" in log[-2]


def test_backports_that_are_there_already_are_left_alone(tmp_path: Path) -> None:
    for name in ("sources.list.d", "preferences.d"):
        (tmp_path / name).mkdir()
    _run_script(packages.make_plan([QEMU], BOOKWORM).script, tmp_path, "echo mirror://theirs/")
    assert list((tmp_path / "sources.list.d").iterdir()) == []


@pytest.mark.parametrize("answer", [None, lambda question: False])
def test_without_consent_the_exact_command_is_told(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(packages, "find_program", lambda name: f"/usr/bin/{name}")
    plan = Plan((FRAME,), "echo 'installed'", None)
    with pytest.raises(HostLacks) as caught:
        packages.install(plan, confirm=answer, progress=lambda line: None)  # type: ignore[arg-type]  # both kinds of no
    assert caught.value.code == "packages_missing"
    assert caught.value.hint == "run: sudo sh -c 'echo '\"'\"'installed'\"'\"''"


def test_a_failed_installation_says_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    heard: list[str] = []
    plan = Plan((FRAME,), "echo 'Setting up x'; echo 'E: Unable to locate package x' >&2; exit 100", None)
    with pytest.raises(HostLacks, match="E: Unable to locate package x") as caught:
        packages.install(plan, confirm=None, progress=heard.append)
    assert caught.value.code == "apt_failed"
    assert heard == ["  Setting up x", "  E: Unable to locate package x"]
