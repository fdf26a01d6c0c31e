"""Who belongs to a machine, when neither its porter nor a namespace of its own tells."""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path

import pytest

from insula.isolation.inhabitants import evict, inhabitants
from insula.isolation.uids import jail_ids

_HOLD = 'exec 9< "$1"; echo ready; exec sleep 600'
_ASKED = "11111111-2222-4333-8444-555555555555"


@pytest.mark.root
def test_its_user_tells_of_one_without_namespaces_whose_porter_is_gone(tmp_path: Path) -> None:
    """As a machine is that runs without a whole jail: it is ended, and nobody else is, whatever he has open there."""
    disk = tmp_path / "disk"
    disk.touch(mode=0o644)
    words = ["sh", "-c", _HOLD, "sh"]
    own = f"--reuid={jail_ids(_ASKED).machine}"
    # A descriptor and no path: this user can walk nowhere.
    with (
        disk.open("rb") as file,
        subprocess.Popen(["setpriv", own, "--clear-groups", "--", "sh", "-c", "echo ready; exec sleep 600"],
                         pass_fds=[file.fileno()], stdout=subprocess.PIPE) as its,
        subprocess.Popen([*words, str(disk)], stdout=subprocess.PIPE) as other,
    ):  # fmt: skip
        try:
            for each in (its, other):
                assert each.stdout is not None
                assert each.stdout.readline() == b"ready\n"
            assert list(inhabitants(tmp_path, _ASKED)) == [its.pid]
            assert inhabitants(tmp_path, str(uuid.uuid4())) == {}
            assert inhabitants(tmp_path, "") == {}
            assert evict(tmp_path, _ASKED, 10.0)
            assert its.wait() == -9
            assert other.poll() is None
        finally:
            its.kill()
            other.kill()
