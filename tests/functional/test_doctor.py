"""``insula doctor`` on this host, through the command line."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from insula.host.program import own_command


def _doctor(home: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        own_command("doctor", *words), capture_output=True, text=True, check=False, env=os.environ | {"INSULA_HOME": str(home)}
    )
    return done.returncode, json.loads(done.stdout) if "--json" in words else {}, done.stdout + done.stderr


@pytest.mark.limit(300)
def test_this_host_runs_machines_and_every_shortfall_is_explained(tmp_path: Path) -> None:
    status, report, _ = _doctor(tmp_path, "--json")
    facts = {fact["name"]: fact for fact in report["facts"]}
    assert (status, report["usable"]) == (0, True)
    assert {"QEMU", "tcg", "kvm", "user namespaces", "cgroups", "userfaultfd", "tap", "bridge", "nft"} <= facts.keys()
    assert "ok" in (facts["kvm"]["state"], facts["tcg"]["state"])
    assert [fact for fact in facts.values() if fact["state"] != "ok" and not (fact["costs"] and fact["fix"])] == []
    again = {fact["name"]: fact for fact in _doctor(tmp_path, "--json")[1]["facts"]}
    for name in ("state folder", "policy"):  # others use the disk meanwhile
        del facts[name], again[name]
    assert again == facts
    status, _, text = _doctor(tmp_path)
    assert status == 0
    assert all(name in text for name in facts)


def test_a_home_that_cannot_be_is_a_shortfall_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, report, _ = _doctor(tmp_path / "file" / "home", "--json")
    assert status == 1
    assert report["usable"] is False
    (fact,) = (fact for fact in report["facts"] if fact["name"] == "state folder")
    assert fact["state"] == "missing"
    assert "INSULA_HOME" in fact["fix"]
