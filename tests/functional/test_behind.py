"""Memory written behind a guest that goes on: all of it, and the disk, are of the one instant at which it stood."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import insula
from insula.client.local import LocalClient
from insula.engines.qemu.engine import QemuEngine
from insula.operations.context import Context
from insula.store.names import Home

pytestmark = [
    pytest.mark.full,
    pytest.mark.limit(180),
    pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/userfaultfd").exists(), reason="this host lends no userfaultfd"),
]

# First into memory, then to the disk, which makes sure of it; and pages by the dozen in between.
_WRITER = """
n=0
while :; do
    n=$((n+1))
    echo $n > /run/n
    head -c 400000 /dev/zero | tr '\\0' $((n % 10)) > /run/pages
    echo $n | dd of=/root/n conv=notrunc,fsync 2> /dev/null
done
"""


@pytest.fixture
def machine(home: Path, tiny: str, name: str) -> insula.Machine:
    """A machine whose engine knows nothing better, as one with an older QEMU; somebody writes in it all the time."""
    here = insula.connect(home)
    here.client = LocalClient(context=Context(Home(home), QemuEngine(Home(home), frozenset({"background-snapshot"}))))
    machine = here.run(tiny, name=name, memory="128M", network="none", cold=True)
    prepare = "head -c 4096 /dev/zero > /root/n; head -c 3000000 /dev/urandom > /run/blob; md5sum /run/blob > /run/sum; sync"
    machine.exec("sh", "-c", f"{prepare}; setsid sh -c '{_WRITER}' > /dev/null 2>&1 < /dev/null &", check=True)
    machine.exec("sh", "-c", "until [ $(cat /run/n) -gt 3 ]; do sleep 0.1; done", check=True)
    return machine


def _count(machine: insula.Machine) -> int:
    return int(machine.exec("cat", "/run/n", check=True).stdout)


def test_memory_and_disk_are_of_one_instant_while_the_guest_goes_on(machine: insula.Machine) -> None:
    before = _count(machine)
    snapshot = machine.snapshot("one")
    assert snapshot.status.method == "background-snapshot"
    machine.exec("sh", "-c", "rm /run/blob; echo later > /root/later; sync", check=True)
    after = _count(machine)
    with snapshot.fork()[0] as child:
        assert "blob: OK" in child.exec("sh", "-c", "md5sum -c /run/sum", check=True).stdout
    snapshot.restore(keep=False)
    machine.pause()
    again = machine.snapshot("again")  # of one that stands: nothing can be written behind it
    assert again.status.method == "stream"
    machine.resume()
    assert before <= _count(machine)
    said = machine.exec("sh", "-c", "ls /root; md5sum -c /run/sum", check=True).stdout
    assert "later" not in said.split()
    assert "blob: OK" in said
    assert after > before
