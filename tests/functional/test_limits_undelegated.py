"""Limits of an ordinary user without a control group of his: what can be held is held by other means, the rest is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from insula.host.native import native_path
from tests.framework.doors import cli_environment
from tests.framework.ordinary import AS_A_USER, REACHABLE, needed
from tests.framework.project import ROOT

pytestmark = [
    pytest.mark.full,
    pytest.mark.limit(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else"),
]

# Arguments: a folder in which the user's home is to be, the images of ours, a native part, those of REACHABLE, and the command.
_AS_A_USER = (
    REACHABLE
    + r"""
set -e
folder=$1; shift
mkdir -p "$folder/cache/insula" "$folder/home"
cp -a "$1" "$folder/home/images"; shift
cp -a "$1" "$folder/cache/insula/"; shift
chown -R 65534:65534 "$folder"
mount --bind "$folder" /mnt
reachable "$folder.seen" "$1" "$2" "$3" "$4"; shift 4
exec "$@"
"""
)


def test_what_no_group_can_hold_is_held_by_threads_or_refused(home: Path, tiny: str, tmp_path: Path) -> None:
    built = str(native_path("insula-keeper").parents[1])
    command = [*AS_A_USER, sys.executable, "-m", "tests.functional.undelegated", "/mnt/home"]
    words = [str(tmp_path / "user"), str(home / "images"), built, *needed(), *command]
    environment = cli_environment(Path("/mnt/home")) | {"HOME": "/mnt", "XDG_CACHE_HOME": "/mnt/cache"}
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", _AS_A_USER, "sh", *words],
        env=environment, cwd=ROOT, capture_output=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    seen = json.loads(done.stdout)
    assert (seen["groups"], seen["leaf"], seen["layer"]) == ([], "", "absent")
    assert {limit: holds for limit, (holds, _) in seen["holds"].items()} == {"cpu-shares": True, "pin": True, "disk-rate": True}
    assert "nice" in seen["holds"]["cpu-shares"][1]
    assert seen["holds"]["pin"][1] == "the affinity of its threads"
    assert (seen["bound"], seen["unbound"]) == (True, True)
    assert (seen["nice"], seen["nicer"]) == (3, 6)  # 1.25 to the third is half, and again
    assert seen["used"], "what a machine uses is told to him, too"
    assert (seen["held"], seen["let go"]) == (16, 6), "an eighth of its shares, for a while"
    assert seen["refused"] == ["no_group"] * 3
