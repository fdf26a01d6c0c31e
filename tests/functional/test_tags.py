"""Networks on a VLAN of the LAN, in a Debian guest: its kernel makes VLANs, and the one that tests run on may not."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import msgspec
import pytest

import insula
from insula.host.native import native_digest, native_path
from tests.framework.project import ROOT
from tests.functional.networks.tags import WAYS

_RECIPES = {(3, 11): "debian-12.toml", (3, 13): "debian.toml"}  # the release whose Python takes the compiled parts of ours
_PACKAGES = '"python3", "python3-pytest", "nftables", "dnsmasq-base",'
_THERE = "opt/insula"

pytestmark = [
    pytest.mark.full,
    pytest.mark.limit(900),
    pytest.mark.skipif(sys.version_info[:2] not in _RECIPES, reason="no Debian has this Python, whose libraries are tried there"),
]


@pytest.fixture
def guest(home: Path, name: str) -> insula.Machine:
    """A Debian with what networks are made of, and with Insula's sources and tests in /opt/insula."""
    recipe = (ROOT / "src/insula/images/recipes" / _RECIPES[sys.version_info[:2]]).read_text()
    lines = [line for line in recipe.splitlines() if not line.startswith(("name =", "aliases ="))]
    text = "\n".join(['name = "tagged"', *lines]).replace("packages = [", f"packages = [ {_PACKAGES}", 1)
    here = insula.connect(home)
    here.build("", text=text)
    machine = here.run("tagged", name=name, memory="768M", network="none", cold=True)
    machine.exec("tar", "-C", "/", "-x", input=_sources(), check=True)
    return machine


def _sources() -> bytes:
    packed, keeper = io.BytesIO(), native_path("insula-keeper")
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for source, name in (
            (ROOT / "src", f"{_THERE}/src"),
            (ROOT / "native", f"{_THERE}/native"),  # by which it knows its own program
            (ROOT / "tests/framework", f"{_THERE}/tests/framework"),
            (ROOT / "tests/functional/networks", f"{_THERE}/tests/functional/networks"),
            (Path(msgspec.__file__).parent, f"{_THERE}/src/msgspec"),
            (keeper, f"root/.cache/insula/native-{native_digest('keeper')}/{keeper.parent.name}/{keeper.name}"),
        ):
            archive.add(source, name, filter=lambda entry: None if "__pycache__" in entry.name else entry)
    return packed.getvalue()


def test_machines_are_on_a_vlan_of_the_lan_and_on_no_other(guest: insula.Machine) -> None:
    run = f"cd /{_THERE} && HOME=/root PYTHONPATH=src:. exec python3 -B -m tests.functional.networks.tags"
    done = guest.exec("sh", "-c", run)
    assert done.code == 0, f"{done.stdout}{done.stderr}"
    assert done.stdout.splitlines() == list(WAYS)
