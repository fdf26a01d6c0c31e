"""Machines on a host that has AppArmor, as Debian has and this one may not: in a Debian guest, with QEMU in it."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import insula
from insula.host.native import native_path
from tests.framework.project import ROOT
from tests.functional import armoured

# The release whose Python takes the compiled parts of ours, and where that has a QEMU that is new enough.
_RECIPES = {(3, 11): ("debian-12.toml", "/bookworm-backports"), (3, 13): ("debian.toml", "")}
_QEMU = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios", "qemu-utils")
_PROFILES = "/opt/insula/insula/isolation/apparmor/insula"
_LABEL = "insula-jail//&insula-machine (enforce)"

pytestmark = [
    pytest.mark.full,
    pytest.mark.limit(1200),
    pytest.mark.skipif(sys.version_info[:2] not in _RECIPES, reason="no Debian has this Python, whose libraries are tried there"),
]


@pytest.fixture(scope="module")
def guest(home: Path) -> Iterator[insula.Machine]:
    """A Debian with AppArmor, QEMU and Insula's sources in /opt/insula; the profiles are not loaded."""
    file, suite = _RECIPES[sys.version_info[:2]]
    recipe = (ROOT / "src/insula/images/recipes" / file).read_text()
    lines = [line for line in recipe.splitlines() if not line.startswith(("name =", "aliases ="))]
    packages = ["python3", "apparmor", "bubblewrap", *(f"{name}{suite}" for name in _QEMU)]
    wanted = "packages = [ " + " ".join(f'"{name}",' for name in packages)
    here = insula.connect(home)
    here.build("", text="\n".join(['name = "armoured"', *lines]).replace("packages = [", wanted, 1))
    with here.run("armoured", memory="1G", network="none", cold=True) as machine:
        machine.exec("tar", "-C", "/", "-x", input=_sources(), check=True)
        yield machine


def _sources() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for source, name in (
            (ROOT / "src/insula", "insula"),
            (ROOT / "native", "insula/_native/src"),
            *((native_path(part), f"insula/_native/bin/amd64/{part}") for part in ("insula-keeper", "insula-probe")),
            (Path(msgspec.__file__).parent, "msgspec"),
            (Path(armoured.__file__), "tests/functional/armoured.py"),
        ):
            archive.add(source, f"opt/insula/{name}", filter=lambda entry: None if "__pycache__" in entry.name else entry)
    return packed.getvalue()


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
    as_user = "setpriv --reuid=65534 --regid=65534 --clear-groups --"
    for seen in (_seen(guest, "machine"), _seen(guest, "machine", "/opt/anna", as_user)):
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
