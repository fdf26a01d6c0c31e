"""`kill -9` of an import, and of merging, at every change they make: the machine is as it was or as it should be."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from msgspec.structs import replace

import insula
from insula.disks.layers import link_layer
from insula.disks.overlays import create_overlay
from insula.operations.merge import BOUND
from insula.store import names
from insula.store.machines import read_machine, write_machine
from insula.store.snapshots import needed_layers, readable_snapshots, snapshot_layers
from tests.faults.rewound import chain_of, run_next, strike, victim
from tests.framework.points import Points

pytestmark = [pytest.mark.full, pytest.mark.limit(400)]


@pytest.fixture
def long_chain(home: Path, tiny: str, name: str) -> Path:
    """A stopped machine of a small disk with more layers than there should be, and different content in each."""
    machine = insula.connect(home).create(tiny, name=name, memory="128M", network="none")
    folder = home / "machines" / name
    for number in range(BOUND + 2):
        start = (600 << 20) + number * (48 << 10)
        words = ["-c", f"write -P {number + 1} {start} 64k", "-c", f"write -z {start + (16 << 10)} 8k"]
        subprocess.run(["qemu-io", *words, chain_of(folder)], check=True, stdout=subprocess.DEVNULL)
        machine.snapshot(f"s{number}")
        if number % 2:
            machine.snapshots()[-2].delete()
        if len(read_machine(folder).disks[0].layers) >= BOUND:
            break
    # The last ones by hand: `snapshot` would start merging behind.
    for number in range(3):
        machine_record = read_machine(folder)
        disk_record = machine_record.disks[0]
        layer, head = f"layers/root-by{number}.qcow2", f"disks/root-by{number}.qcow2"
        link_layer(folder / disk_record.head, folder / layer)
        (folder / layer).chmod(0o444)
        create_overlay(folder / head, disk_record.size)
        changed = replace(disk_record, layers=[*disk_record.layers, layer], head=head)
        write_machine(folder, replace(machine_record, disks=[changed]))
        (folder / disk_record.head).unlink()
    return folder


def _check_tidy(home: Path, folder: Path) -> None:
    """Another verb has been here: what is in the folder is named by somebody, and all that is named is there."""
    named = needed_layers(read_machine(folder))
    for _, record in readable_snapshots(folder):
        named |= snapshot_layers(record)
    assert {f"layers/{path.name}" for path in (folder / names.LAYERS).iterdir()} == named
    assert not [entry for entry in os.listdir(home / "machines") if entry.startswith(".")]


def test_merging_killed_at_every_change(home: Path, long_chain: Path, tmp_path: Path) -> None:
    machine = insula.connect(home).get(long_chain.name)
    machine_id = read_machine(long_chain).id
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", chain_of(long_chain), tmp_path / "before"], check=True)
    step = 1
    while True:
        status = victim(home, f"c{step}", "merge", long_chain.name, VICTIM_ID=machine_id)[0]
        compared = subprocess.run(["qemu-img", "compare", "-q", tmp_path / "before", chain_of(long_chain)], check=False)
        assert compared.returncode == 0, f"after change {step}"
        if status == 0:
            break
        assert status == -signal.SIGKILL
        machine.rename(f"{long_chain.name}-y")  # any verb that takes the lock
        machine.rename(long_chain.name)
        _check_tidy(home, long_chain)
        if len(read_machine(long_chain).disks[0].layers) <= BOUND:
            break
        step += 1
    assert step > 10
    assert len(read_machine(long_chain).disks[0].layers) <= BOUND
    for path in (long_chain / names.LAYERS).glob("*.qcow2"):
        subprocess.run(["qemu-img", "check", "-q", path], check=True)


def test_an_import_killed_at_every_change(home: Path, tiny: str, name: str, tmp_path: Path, points: Points) -> None:
    machine = insula.connect(home).create(tiny, name=name, memory="128M", network="none")
    machine.snapshot("moved").export(tmp_path / "snapshot")
    elsewhere = tmp_path / "elsewhere"
    connection = insula.connect(elsewhere)

    def check(status: int) -> None:
        run_next(elsewhere)
        done = any(each.name == "web" for each in connection.list())
        assert done or status
        if done:  # whole, or it would not be there
            assert connection.get("web").snapshots()[0].restore().state == "stopped"
            _check_tidy(elsewhere, elsewhere / "machines" / "web")
            connection.get("web").delete()
        assert os.listdir(elsewhere / "machines") == []

    points.each(lambda change: strike(elsewhere, f"c{change}", "snapshot-import", "web", check), rounds=12, least=10)
