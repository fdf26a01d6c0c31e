"""Files that every version of Insula and its keeper left on a disk, recorded once, are still understood. They never change."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from insula.images.catalogue import find, find_built
from insula.images.record import read_image
from insula.model.limits import Limits
from insula.model.network import Rates
from insula.model.spec import MachineSpec
from insula.model.status import End, State
from insula.operations import journal
from insula.operations.observe import last_end, observe, read_exit
from insula.store import names
from insula.store.events import read_events
from insula.store.machines import BoardRecord, ImageUse, read_machine
from insula.store.names import Home
from insula.store.sums import read_stamps

RECORDS = Path(__file__).parents[2] / "corpus" / "records"
V1, V2, V3 = RECORDS / "v1", RECORDS / "v2", RECORDS / "v3"
DIGEST = "76797eb0da401906c906ec2599d4f9d1e5fdbd0c5364bc767027906141651eed"
ENDED_AT = 1_795_246_800.0


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine as version 1 left it: stopped, its end settled."""
    folder = tmp_path / "machines" / "web"
    folder.mkdir(parents=True)
    for name in (names.RECORD, names.EVENTS, names.LAST_END):
        shutil.copy(V1 / name, folder / name)
    return folder


@pytest.fixture
def running(machine: Path) -> Path:
    """The same while it runs: somebody listens, and the keeper's status is there."""
    (machine / names.RUN).mkdir()
    shutil.copy(V1 / names.STATUS, machine / names.RUN)
    return machine


def test_no_record_was_lost() -> None:
    assert sorted(path.name for path in V1.iterdir()) == sorted(
        [
            names.RECORD,
            names.EVENTS,
            names.LAST_END,
            names.JOURNAL,
            names.STATUS,
            names.EXIT,
            names.IMAGE_RECORD,
            names.IMAGE_NAMES,
        ]
    )


def test_a_machine_is_what_it_was(machine: Path) -> None:
    record = read_machine(machine)
    assert (record.version, record.sums) == (1, {})  # made before layers had sums
    assert (record.kind, record.arch, record.ephemeral) == ("vm", "amd64", False)
    assert record.image == ImageUse(name="tiny", digest=DIGEST)
    assert record.spec == MachineSpec(cpus=1, memory=128 << 20, disk=10 << 30, networks=("nat",), firmware="bios")
    assert record.identity.mac == "52:54:00:04:b7:88"
    assert record.identity.machine_id == record.id.replace("-", "")
    assert (record.boot.kind, record.boot.agent) == ("direct", True)
    assert [(disk.name, disk.head, disk.size) for disk in record.disks] == [("root", "disks/root-0.qcow2", 10 << 30)]
    assert isinstance(record.board, BoardRecord)
    assert (record.board.machine, record.board.accelerator) == ("pc-q35-10.0", "tcg")


def test_a_stopped_machine_is_listed_with_its_end(machine: Path) -> None:
    status, _ = observe(machine)
    assert (status.name, status.state, status.image, status.problem) == ("web", State.STOPPED, "tiny", None)
    assert status.ended == last_end(machine)
    assert status.ended is not None
    assert (status.ended.reason, int(status.ended.at)) == ("stopped", int(ENDED_AT))


def test_a_machine_of_version_2_knows_what_its_layers_must_be(tmp_path: Path) -> None:
    assert sorted(path.name for path in V2.iterdir()) == sorted([names.RECORD, names.LAST_END, names.VERIFIED_LAYERS])
    folder = tmp_path / "web"
    shutil.copytree(V2, folder)
    record = read_machine(folder)
    assert record.version == 2
    assert set(record.sums) == {f"layers/{record.image.digest[:16]}-{name}" for name in ("root.qcow2", "vmlinuz", "initrd")}
    stamps = read_stamps(folder / names.VERIFIED_LAYERS)
    assert {path: (stamp.size, stamp.sha256) for path, stamp in stamps.items()} == {
        path: (expected.size, expected.sha256) for path, expected in record.sums.items()
    }
    end = last_end(folder)
    assert end is not None
    assert (end.reason, end.at > ENDED_AT) == ("guest-shutdown", True)


def test_a_machine_of_version_3_has_its_card_and_no_limits(tmp_path: Path) -> None:
    folder = tmp_path / "web"
    shutil.copytree(V3, folder)
    record = read_machine(folder)
    assert (record.version, record.spec.networks, record.limits) == (3, ("nat",), Limits())
    assert [(nic.key, nic.slot, nic.rates) for nic in record.nics] == [("6a26fde2", 0, Rates())]


def test_an_end_told_by_a_newer_version_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / names.LAST_END).write_text('{"version": 99, "reason": "stopped", "at": 1.0}')
    assert last_end(tmp_path) is None


def test_a_running_machine_is_listed_as_its_keeper_says(running: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        at = os.open(running / names.RUN, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{at}/{names.KEEPER_SOCKET}")
        os.close(at)
        listener.listen(8)
        status, _ = observe(running)
    assert (status.state, status.agent, status.reason, status.ended) == (State.RUNNING, True, None, None)
    assert status.addresses


def test_an_exit_record_says_why(running: Path) -> None:
    path = running / names.RUN / names.EXIT
    shutil.copy(V1 / names.EXIT, path)
    os.utime(path, (ENDED_AT, ENDED_AT))
    assert read_exit(running) == End(reason="stopped", at=ENDED_AT, detail="", last_words="")


def test_events_are_all_read(machine: Path) -> None:
    events = list(read_events(machine))
    told = ["created", "STARTED", "NETDEV_STREAM_CONNECTED", "started", "VSERPORT_CHANGE", "AGENT", "NIC_RX_FILTER_CHANGED"]
    assert [event["event"] for event in events] == [*told, "SHUTDOWN", "ENDED", "ended"]
    assert all(isinstance(event["time"], int) and isinstance(event["data"], dict) for event in events)
    assert events[-1]["data"] == {"reason": "stopped", "detail": ""}


def test_a_journal_tells_what_was_begun(machine: Path) -> None:
    shutil.copy(V1 / names.JOURNAL, machine)
    assert journal.pending(machine) == journal.Entry(verb="restart", step="stop")


def test_an_image_is_found_by_its_name_its_digest_and_its_question(tmp_path: Path) -> None:
    home = Home(tmp_path)
    folder = home.image(DIGEST)
    folder.mkdir(parents=True)
    shutil.copy(V1 / names.IMAGE_RECORD, folder)
    shutil.copy(V1 / names.IMAGE_NAMES, home.images)
    image = read_image(folder)
    assert (image.name, image.boot, image.disk_bytes, image.record.arch) == ("tiny", "direct", 10 << 30, "amd64")
    assert image.record.kernel == "6.12.117+deb13-cloud-amd64"
    assert image.record.recipe.packages == ("busybox-static",)
    assert set(image.record.files) == {names.ROOT_LAYER, names.KERNEL, names.INITRD}
    assert find(home, "tiny") == find(home, DIGEST[:12]) == find_built(home, image.record.key) == image
