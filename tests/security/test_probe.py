"""Nothing gets out of a machine's jail, as root and as an ordinary user; the probe that says so notices each layer that lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from insula.host.cgroup_trees import usable_trees
from insula.host.native import native_path
from insula.store.names import Home
from tests.framework.doors import cli_environment, run_cli
from tests.framework.ordinary import AS_A_USER, REACHABLE, needed
from tests.framework.project import ROOT
from tests.security.weakened import LAYERS

# Arguments: a folder, in which the user's home is to be, what the native parts are kept in, those of REACHABLE, and the command.
_AS_A_USER = (
    REACHABLE
    + r"""
set -e
folder=$1; shift
mkdir -p "$folder/cache/insula"
cp -a "$1" "$2" "$folder/cache/insula/"; shift 2
chown -R 65534:65534 "$folder"
mount --bind "$folder" /mnt
reachable "$folder.seen" "$1" "$2" "$3" "$4"; shift 4
exec "$@"
"""
)
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
    built = [str(native_path(name).parents[1]) for name in ("insula-probe", "insula-keeper")]
    words = [
        str(tmp_path / "user"),
        *built,
        *needed(),
        *AS_A_USER,
        sys.executable,
        "-m",
        "tests.security.weakened",
        "/mnt/home",
        "none",
    ]
    environment = cli_environment(Path("/mnt/home")) | {"HOME": "/mnt", "XDG_CACHE_HOME": "/mnt/cache"}
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", _AS_A_USER, "sh", *words],
        env=environment, cwd=ROOT, capture_output=True, check=False, timeout=170,
    )  # fmt: skip
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
