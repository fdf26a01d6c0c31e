"""Machines on a host that has AppArmor, as Debian has and this one may not: in a Debian guest, with QEMU in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import insula
from insula.host.native import native_path
from tests.framework.inner import HAS_RELEASE, WITHOUT, debian_with_insula
from tests.framework.project import ROOT
from tests.functional import armoured

_QEMU = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios", "qemu-utils")
_PROFILES = "/opt/insula/insula/isolation/apparmor/insula"
_AS_USER = "setpriv --reuid=65534 --regid=65534 --clear-groups --"
_LABEL = "insula-jail//&insula-machine (enforce)"

pytestmark = [
    pytest.mark.full,
    pytest.mark.limit(1200),
    pytest.mark.skipif(not HAS_RELEASE, reason=WITHOUT),
]


@pytest.fixture(scope="module")
def guest(home: Path) -> Iterator[insula.Machine]:
    """A Debian with AppArmor, QEMU and Insula; the profiles are not loaded."""
    files = {ROOT / "native": "insula/_native/src", Path(armoured.__file__): "tests/functional/armoured.py"}
    files |= {native_path(part): f"insula/_native/bin/amd64/{part}" for part in ("insula-keeper", "insula-probe")}
    with debian_with_insula(home, "armoured", "1G", ("apparmor", "bubblewrap", "swtpm"), _QEMU, files) as machine:
        yield machine


def _seen(guest: insula.Machine, what: str, home: str = "/opt/root", who: str = "") -> Any:
    environment = f"env PYTHONPATH=/opt/insula PYTHONDONTWRITEBYTECODE=1 HOME={home}"
    script = f"cd / && exec {who} {environment} python3 /opt/insula/tests/functional/armoured.py {what} {home}/insula"
    return json.loads(guest.exec("sh", "-c", script, check=True).stdout)


def test_what_is_not_loaded_holds_nobody_and_what_is_holds_all(guest: insula.Machine) -> None:
    """Machines run without the profile, and with it, and go on from their states; the kernel's words tell which. Nothing that
    they do is refused."""
    before = _seen(guest, "machine")
    assert before["fact"] == "limited"
    assert before["machine"]["layers"]["AppArmor or SELinux"][0] == "absent"
    guest.exec("apparmor_parser", "--replace", _PROFILES, check=True)
    guest.exec("install", "-d", "-o", "nobody", "-m", "700", "/opt/anna", check=True)
    guest.exec("dmesg", "--clear", check=True)
    for seen in (_seen(guest, "machine"), _seen(guest, "machine", "/opt/anna", _AS_USER)):
        assert seen["fact"] == "ok"
        assert seen["mapped"]
        for one in (seen["machine"], seen["child"]):
            assert [name for name, (state, _) in one["layers"].items() if state == "broken"] == []
            assert one["layers"]["AppArmor or SELinux"] == ["holds", _LABEL]
            assert set(one["labels"].values()) == {_LABEL}
            assert any(called.startswith("qemu") for called in one["labels"])
    assert 'apparmor="DENIED"' not in guest.exec("dmesg", check=True).stdout
    tried = _seen(guest, "probe")
    assert {name: result for name, result in tried.items() if name != "fact" and not result.startswith("blocked")} == {}
    assert len(tried) > 40


def test_the_profile_alone_refuses_what_no_machine_needs(guest: insula.Machine) -> None:
    guest.exec("apparmor_parser", "--replace", _PROFILES, check=True)
    seen = _seen(guest, "profile")
    may = {"have a socket of the machine", "run a program of its root"}
    assert set(seen["held"]) == may
    assert set(seen["free"]) == may | {
        *("have a socket of the internet", "have a packet socket", "have a netlink socket"),
        *("mount", "use a right of root's", "trace", "run another"),
    }  # fmt: skip


@pytest.mark.parametrize("who", ["root", "user"])
def test_tools_are_held_too_and_run_nothing_that_they_are_handed(guest: insula.Machine, who: str) -> None:
    guest.exec("install", "-d", "-o", "nobody", "-m", "700", "/opt/berta", check=True)

    def tools() -> Any:
        return _seen(guest, "tool", "/opt/berta", _AS_USER) if who == "user" else _seen(guest, "tool")

    guest.exec("sh", "-c", f"apparmor_parser --remove {_PROFILES} || true")  # whether or not it was loaded before
    before = tools()
    assert (before["label"], before["tpm"], before["handed"]) == ("unconfined", True, 0)
    guest.exec("apparmor_parser", "--replace", _PROFILES, check=True)
    guest.exec("dmesg", "--clear", check=True)
    seen = tools()
    assert (seen["label"], seen["tpm"]) == ("insula-room//&insula-tool (enforce)", True)
    assert seen["handed"] != 0
    lines = guest.exec("dmesg", check=True).stdout.splitlines()
    assert [line for line in lines if 'apparmor="DENIED"' in line and 'operation="exec"' not in line] == []
