"""Control groups of version 2, as most hosts have them and the one that tests run on may not: in a Debian guest, as root and as
an ordinary user to whom a group was delegated."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import insula
from insula.resources.shares import fence, settings
from tests.framework.inner import HAS_RELEASE, WITHOUT, debian_with_insula
from tests.functional import grouped

pytestmark = [
    pytest.mark.full,
    pytest.mark.limit(900),
    pytest.mark.skipif(not HAS_RELEASE, reason=WITHOUT),
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

_BY_SYSTEMD = """
install -d -o nobody /opt/served
exec systemd-run --quiet --wait --pipe --property=Delegate=yes --property=User=nobody \\
    --setenv=PYTHONPATH=/opt/insula --setenv=PYTHONDONTWRITEBYTECODE=1 \\
    python3 /opt/insula/tests/functional/grouped.py /opt/served/home
"""


@pytest.fixture(scope="module")
def guest(home: Path) -> Iterator[insula.Machine]:
    files = {Path(grouped.__file__): "tests/functional/grouped.py"}
    with debian_with_insula(home, "grouped", "768M", files=files) as machine:
        yield machine


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


def test_what_systemd_delegates_is_used(guest: insula.Machine) -> None:
    """To a service of an ordinary user's, which is in the group that it was given."""
    seen = json.loads(guest.exec("sh", "-c", _BY_SYSTEMD, check=True).stdout)
    _check(seen)
    assert re.fullmatch(r"/sys/fs/cgroup/system\.slice/run-[\w-]+\.service", seen["base"])
