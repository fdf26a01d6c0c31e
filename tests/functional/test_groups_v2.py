"""Control groups of version 2, as most hosts have them and the one that tests run on may not: in a Debian guest, as root and as
an ordinary user to whom a group was delegated."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import insula
from insula.resources.shares import fence, settings
from tests.framework.project import ROOT
from tests.functional import grouped

_RECIPES = {(3, 11): "debian-12.toml", (3, 13): "debian.toml"}  # the release whose Python takes the compiled parts of ours

pytestmark = [
    pytest.mark.full,
    pytest.mark.limit(900),
    pytest.mark.skipif(sys.version_info[:2] not in _RECIPES, reason="no Debian has this Python, whose libraries are tried there"),
]

_DELEGATED = """
group=/sys/fs/cgroup/delegated
echo '+cpu +cpuset +io +memory +pids' > /sys/fs/cgroup/cgroup.subtree_control
mkdir $group
chown nobody $group $group/cgroup.procs $group/cgroup.subtree_control $group/cgroup.threads
install -d -o nobody /opt/theirs
echo $$ > $group/cgroup.procs
exec setpriv --reuid=65534 --regid=65534 --clear-groups \
    env PYTHONPATH=/opt/insula PYTHONDONTWRITEBYTECODE=1 python3 /opt/insula/tests/functional/grouped.py /opt/theirs/home
"""


@pytest.fixture(scope="module")
def guest(home: Path) -> Iterator[insula.Machine]:
    """A Debian with a Python, and with Insula's sources in /opt/insula."""
    recipe = (ROOT / "src/insula/images/recipes" / _RECIPES[sys.version_info[:2]]).read_text()
    lines = [line for line in recipe.splitlines() if not line.startswith(("name =", "aliases ="))]
    text = "\n".join(['name = "grouped"', *lines]).replace("packages = [", 'packages = [ "python3",', 1)
    here = insula.connect(home)
    here.build("", text=text)
    with here.run("grouped", memory="768M", network="none", cold=True) as machine:
        machine.exec("tar", "-C", "/", "-x", input=_sources(), check=True)
        yield machine


def _sources() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for source, name in (
            (ROOT / "src/insula", "insula"),
            (Path(msgspec.__file__).parent, "msgspec"),
            (Path(grouped.__file__), "tests/functional/grouped.py"),
        ):
            archive.add(source, f"opt/insula/{name}", filter=lambda entry: None if "__pycache__" in entry.name else entry)
    return packed.getvalue()


def _check(seen: dict[str, object]) -> None:
    versions = dict.fromkeys(("cpu", "cpuset", "io", "memory", "pids"), 2)
    assert seen["kind"] == "v2"
    assert seen["versions"] == versions
    assert seen["inside"]
    wanted = {each.file: each.value for each in settings(grouped.LIMITS, grouped.MEMORY, versions, "0")}
    wanted["io.weight"] = f"default {wanted['io.weight']}"
    del wanted["io.bfq.weight"]  # its scheduler is a module there
    files = seen["files"]
    assert isinstance(files, dict)
    assert {file: files[file] for file in wanted} == wanted
    assert int(wanted["memory.max"]) == fence(grouped.MEMORY)
    assert isinstance(seen["used"], float)
    assert seen["used"] <= 0.2 * 1.1 + 0.1  # half a second of time, and at its edges a period and a burst
    assert seen["taken back"] == ["max 100000", True]
    assert (seen["removed"], seen["mended"], seen["kept while used"]) == (True, True, True)
    assert (seen["status"], seen["out of memory"], seen["left"]) == (-9, True, [])


def test_root_holds_machines_by_groups_at_the_top(guest: insula.Machine) -> None:
    run = "env PYTHONPATH=/opt/insula python3 /opt/insula/tests/functional/grouped.py /opt/home"
    seen = json.loads(guest.exec("sh", "-c", run, check=True).stdout)
    _check(seen)
    assert seen["base"] == "/sys/fs/cgroup"
    assert guest.exec("sh", "-c", "ls -d /sys/fs/cgroup/insula*").code != 0


def test_who_was_delegated_a_group_holds_them_in_it(guest: insula.Machine) -> None:
    seen = json.loads(guest.exec("sh", "-c", _DELEGATED, check=True).stdout)
    _check(seen)
    assert seen["base"] == "/sys/fs/cgroup/delegated"
    assert guest.exec("sh", "-c", "ls -d /sys/fs/cgroup/delegated/insula").code != 0
