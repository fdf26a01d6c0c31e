"""Nothing gets out of a machine's jail, as root and as an ordinary user; the probe that says so notices each layer that lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from insula.host.cgroup_trees import usable_trees
from insula.store.names import Home
from tests.framework.doors import cli_environment, run_cli
from tests.framework.ordinary import with_a_home
from tests.framework.project import ROOT
from tests.security.weakened import LAYERS

_UNFENCED = {"take far more memory than a machine"}  # only a control group keeps a machine from that
# What is open when a layer is not there: what stands behind it is not noticed, so it was the layer.
NOTICED = {
    "calls": {"have a vsock socket", "join a keyring", "change its personality", "make a call of tomorrow"},
    "network": {"connect to an abstract socket of the host"},
    "processes": {"signal a process of the host"},
    "namespaces": {"have a new user namespace", "have a process in a new user namespace"},
    "read-only": {"find the root writable"},
    "user": {"be root"},
    "locks": {"lock memory"},
    "sizes": {"make its disk grow without end"},
    "group": _UNFENCED,
}


def open_without(home: Path, layer: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.security.weakened", str(home), layer],
        env=cli_environment(home), cwd=ROOT, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return set(done.stdout.decode().splitlines())


def test_nothing_gets_out(home: Path) -> None:
    done = run_cli(home, "doctor", "--probe", "--json")
    attempts = json.loads(done.stdout)
    left = {each["name"] for each in attempts if each["result"] != "blocked"}
    assert left == (set() if usable_trees() else _UNFENCED)
    assert done.returncode == (1 if left else 0)
    table = (ROOT / "docs/security.md").read_text()
    assert [each["name"] for each in attempts if f"| {each['name']} | blocked | " not in table] == []
    assert len({each["name"] for each in attempts}) == len(attempts) > 80
    assert list(Home(home).machines.iterdir()) == [] or not [
        path for path in Home(home).machines.iterdir() if path.name[0] == "."
    ]


@pytest.mark.root
def test_nothing_gets_out_as_an_ordinary_user(tmp_path: Path) -> None:
    """Whose home is a folder that is seen as /mnt."""
    argv = with_a_home(tmp_path / "user", [sys.executable, "-m", "tests.security.weakened", "/mnt/home", "none"])
    environment = cli_environment(Path("/mnt/home")) | {"HOME": "/mnt", "XDG_CACHE_HOME": "/mnt/cache"}
    done = subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True, check=False, timeout=170)
    assert done.returncode == 0, done.stderr.decode()
    assert set(done.stdout.decode().splitlines()) <= _UNFENCED


@pytest.mark.parametrize("layer", [pytest.param(layer, marks=() if layer == "calls" else pytest.mark.full) for layer in NOTICED])
def test_the_probe_notices_what_lacks(home: Path, layer: str) -> None:
    if layer == "user" and os.geteuid() != 0:
        pytest.skip("needs to be root")
    if layer == "group" and not usable_trees():
        pytest.skip("no control group can be had here")
    found = open_without(home, layer)
    assert NOTICED[layer] <= found
    # Each other layer still does its part.
    assert not found & {"read another machine's disk", "read /etc/shadow", "connect to another machine's QMP", "load a module"}


def test_all_layers_are_tried() -> None:
    assert set(NOTICED) | {"none"} == set(LAYERS)
