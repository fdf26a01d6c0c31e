"""A snapshot goes to another computer (another home) as one file, and lives there; chains of layers stay short."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import insula
from insula.errors import InsulaError
from insula.operations.merge import BOUND, MOST
from insula.store import names
from insula.store.machines import read_machine
from insula.store.snapshots import readable_snapshots
from tests.framework.doors import run_cli

pytestmark = pytest.mark.limit(240)

SHAPE = {"memory": "128M", "network": "none"}
# A number that grows, in memory alone.
COUNTER = "n=0; while :; do n=$((n+1)); echo $n > /dev/shm/n.new; mv /dev/shm/n.new /dev/shm/n; sleep 0.05; done"


@pytest.fixture(scope="module")
def exported(home: Path, tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, int]]:
    """A file with the snapshot ``moved`` of a machine that had a life; the sum of a blob of it, and how far it had counted."""
    machine = insula.connect(home).run(tiny, name="port-source", **SHAPE)  # type: ignore[arg-type] # a plain dict
    try:
        machine.exec("sh", "-c", "mkdir -p /dev/shm && (mountpoint -q /dev/shm || mount -t tmpfs none /dev/shm)", check=True)
        machine.exec("sh", "-c", f"setsid sh -c '{COUNTER}' > /dev/null 2>&1 < /dev/null &", check=True)
        machine.exec("sh", "-c", "echo disk > /root/note; echo memory > /dev/shm/note", check=True)
        machine.exec("sh", "-c", "head -c 2000000 /dev/urandom > /root/blob; sync", check=True)
        blob = machine.exec("sha256sum", "/root/blob", check=True).stdout
        counted = int(machine.exec("cat", "/dev/shm/n", check=True).stdout)
        file = tmp_path_factory.mktemp("port") / "file"
        machine.snapshot("moved", description="on its way").export(file)
        yield file, blob, counted
    finally:
        machine.delete(force=True)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """The home of another computer."""
    home = tmp_path / "elsewhere"
    yield home
    for machine in insula.connect(home).list():
        insula.connect(home).get(machine.name).delete(force=True)


def _is_alive(machine: insula.Machine, blob: str, counted: int) -> None:
    machine.exec("sh", "-c", "echo 3 > /proc/sys/vm/drop_caches", check=True)
    assert machine.exec("cat", "/root/note", "/dev/shm/note", check=True).stdout.split() == ["disk", "memory"]
    assert machine.exec("sha256sum", "/root/blob", check=True).stdout == blob
    now = int(machine.exec("cat", "/dev/shm/n", check=True).stdout)
    assert counted <= now
    deadline = time.monotonic() + 20
    while int(machine.exec("cat", "/dev/shm/n", check=True).stdout) == now:
        assert time.monotonic() < deadline, "it does not count on"


def test_it_lives_on_elsewhere(exported: tuple[Path, str, int], elsewhere: Path) -> None:
    file, blob, counted = exported
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    snapshot = insula.connect(elsewhere).import_snapshot(file, "web")
    assert (snapshot.machine.state, snapshot.status.state, snapshot.status.description) == ("stopped", "running", "on its way")
    machine = snapshot.restore()
    _is_alive(machine, blob, counted)
    assert machine.exec("hostname", check=True).stdout.strip() == "web"
    (child,) = snapshot.fork(name="child")
    _is_alive(child, blob, counted)


@pytest.mark.full
def test_a_folder_copied_by_hand_is_whole(home: Path, tiny: str, name: str, elsewhere: Path) -> None:
    """`cp -a` of a stopped machine's folder, snapshots and all: it needs nothing of where it was."""
    machine = insula.connect(home).run(tiny, name=name, **SHAPE)  # type: ignore[arg-type] # a plain dict
    machine.exec("sh", "-c", "echo old > /root/note; echo memory > /run/note; sync", check=True)
    machine.snapshot("one")
    machine.exec("sh", "-c", "echo new > /root/note; sync", check=True)
    machine.stop()
    (elsewhere / "machines").mkdir(parents=True, mode=0o700)
    subprocess.run(["cp", "-a", home / "machines" / name, elsewhere / "machines" / name], check=True)
    machine.delete()
    copy = insula.connect(elsewhere).get(name)
    insula.Snapshot(copy, "one").restore()
    assert copy.exec("cat", "/root/note", "/run/note", check=True).stdout == "old\nmemory\n"
    insula.Snapshot(copy, "before-restore").restore(keep=False)
    assert copy.start().exec("cat", "/root/note", check=True).stdout == "new\n"


def test_its_disk_alone_boots_elsewhere(exported: tuple[Path, str, int], elsewhere: Path) -> None:
    file, blob, _ = exported
    with file.open("rb") as stream:
        machine = insula.connect(elsewhere).import_snapshot(stream, "web", snapshot="other").machine
    assert machine.start().exec("sha256sum", "/root/blob", check=True).stdout == blob
    for layer in (elsewhere / "machines/web/layers").glob("*.qcow2"):
        subprocess.run(["qemu-img", "check", "-q", "-U", layer], check=True)


def test_sealed_and_through_a_pipe(home: Path, exported: tuple[Path, str, int], elsewhere: Path, tmp_path: Path) -> None:
    _, blob, counted = exported
    secret = tmp_path / "secret"
    secret.write_text("open sesame\n")
    out = run_cli(home, "snapshot", "export", "--passphrase-file", str(secret), "port-source@moved", "-")
    assert out.returncode == 0, out.stderr
    assert b"on its way" not in out.stdout
    wrong = tmp_path / "wrong"
    wrong.write_text("open barley\n")
    refused = run_cli(elsewhere, "snapshot", "import", "--json", "--passphrase-file", str(wrong), "-", "web", data=out.stdout)
    assert refused.returncode == 2
    assert b"wrong_passphrase" in refused.stderr
    assert insula.connect(elsewhere).list() == []
    done = run_cli(elsewhere, "snapshot", "import", "-q", "--passphrase-file", str(secret), "-", "web", data=out.stdout)
    assert done.returncode == 0, done.stderr
    restored = run_cli(elsewhere, "snapshot", "restore", "web@moved")
    assert restored.returncode == 0, restored.stderr
    _is_alive(insula.connect(elsewhere).get("web"), blob, counted)


def test_beside_the_machine_it_is_of_it_becomes_another(
    home: Path, exported: tuple[Path, str, int], forget: Callable[[str], None]
) -> None:
    file, blob, counted = exported
    forget("port-twin")
    machine = insula.connect(home).import_snapshot(file, "port-twin").restore()
    _is_alive(machine, blob, counted)
    source = insula.connect(home).get("port-source")
    assert machine.show().id != source.show().id
    ids = {each.exec("cat", "/etc/machine-id", check=True).stdout for each in (machine, source)}
    assert len(ids) == 2
    image = home / "images" / read_machine(home / "machines/port-twin").image.digest / "root.qcow2"
    assert any(layer.samefile(image) for layer in (home / "machines/port-twin/layers").iterdir())


def test_into_a_machine_that_is_there(exported: tuple[Path, str, int], elsewhere: Path, home: Path, tiny: str) -> None:
    file, blob, counted = exported
    connection = insula.connect(elsewhere)
    first = connection.import_snapshot(file, "web")
    with pytest.raises(InsulaError) as refused:
        connection.import_snapshot(file, "web")
    assert refused.value.code == "snapshot_exists"
    layers = sorted(path.name for path in (elsewhere / "machines/web/layers").iterdir())
    second = connection.import_snapshot(file, "web", snapshot="again")
    assert sorted(path.name for path in (elsewhere / "machines/web/layers").iterdir()) == layers
    first.delete()
    _is_alive(second.restore(), blob, counted)
    other = insula.connect(home).create(tiny, name="port-other", memory="160M", network="none")
    try:
        with pytest.raises(InsulaError) as refused:
            insula.connect(home).import_snapshot(file, "port-other")
        assert refused.value.code == "snapshot_does_not_fit"
        assert "160" in refused.value.message or str(160 << 20) in refused.value.message
    finally:
        other.delete()


def test_what_is_not_whole_or_was_changed_leaves_nothing(exported: tuple[Path, str, int], elsewhere: Path) -> None:
    content = exported[0].read_bytes()
    connection = insula.connect(elsewhere)
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for bad in (content[: len(content) // 2], content[:-1], bytes(flipped), content + b"x"):
        with pytest.raises(InsulaError) as refused:
            connection.import_snapshot(io.BytesIO(bad), "web")
        assert refused.value.code in ("parcel_truncated", "parcel_damaged")
        assert os.listdir(elsewhere / "machines") == []


@pytest.mark.parametrize(
    ("field", "theirs", "said"),
    [
        (b'"cpu":"EPYC', b'"cpu":"XPYC', "CPU model"),
        (b'"accelerator":"tcg"', b'"accelerator":"kvm"', "accelerator"),
        (b'"machine":"pc-q35-10', b'"machine":"pc-q35-99', "machine type"),
    ],
)
def test_what_cannot_go_on_here_is_refused_with_both_sides_named(
    exported: tuple[Path, str, int], elsewhere: Path, field: bytes, theirs: bytes, said: str
) -> None:
    content = exported[0].read_bytes()
    if field not in content:
        pytest.skip(f"this host's snapshots have no {field.decode()}")
    with pytest.raises(InsulaError) as refused:
        insula.connect(elsewhere).import_snapshot(io.BytesIO(content.replace(field, theirs)), "web")
    assert refused.value.code == "snapshot_not_loadable"
    assert said in refused.value.message
    assert theirs.rpartition(b'"')[2].decode() in refused.value.message


def test_an_export_takes_nobodys_file_and_leaves_no_half_one(home: Path, exported: tuple[Path, str, int], tmp_path: Path) -> None:
    snapshot = insula.connect(home).get("port-source").snapshots()[0]
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(InsulaError) as refused:
        snapshot.export(taken)
    assert refused.value.code == "file_exists"
    assert taken.read_text() == "mine"
    missing = insula.client.machine.Snapshot(snapshot.machine, "nothing")
    with pytest.raises(InsulaError):
        missing.export(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


# -- layers ------------------------------------------------------------------------------------------------------------------
def _depth(folder: Path) -> int:
    return max(len(disk.layers) for disk in read_machine(folder).disks)


def _wait_short(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while _depth(folder) > BOUND:
        assert time.monotonic() < deadline, "the layers were not merged"
        time.sleep(0.1)


@pytest.mark.full
@pytest.mark.limit(400)
def test_a_hundred_snapshots_in_a_row(home: Path, running: str) -> None:
    machine, folder = insula.connect(home).get(running), home / "machines" / running
    for number in range(100):
        script = f"head -c 30000 /dev/urandom > /root/b{number % 5}; sha256sum /root/b? > /root/sums"
        machine.exec("sh", "-c", script, check=True)
        machine.snapshot()
        assert _depth(folder) <= MOST + 1
    _wait_short(folder)
    assert all(len(disk.layers) <= MOST + 1 for _, record in readable_snapshots(folder) for disk in record.disks)
    check = "sync; echo 3 > /proc/sys/vm/drop_caches; sha256sum -c /root/sums"
    machine.exec("sh", "-c", check, check=True)
    snapshots = machine.snapshots()
    assert len(snapshots) == 100
    snapshots[40].restore(keep=False)
    machine.exec("sh", "-c", check, check=True)
    for snapshot in snapshots[1:]:
        snapshot.delete()
    machine.exec("sh", "-c", check, check=True)
    machine.stop(force=True).start()
    machine.exec("sh", "-c", check, check=True)
    machine.stop()
    for path in (folder / names.LAYERS).glob("*.qcow2"):
        subprocess.run(["qemu-img", "check", "-q", path], check=True)


def test_usage_counts_each_file_once(home: Path, exported: tuple[Path, str, int]) -> None:
    found = insula.connect(home).disk_usage()
    web = next(each for each in found.holders if each.name == "port-source")
    assert web.own + web.shared == web.heads + web.layers + web.memory + web.rest
    assert any("image" in other for file in web.shared_files for other in file.others)
    assert found.total <= sum(each.own + each.shared for each in found.holders)
    one = insula.connect(home).disk_usage("port-source")
    assert [each.name for each in one.holders] == ["port-source"]
    with pytest.raises(InsulaError) as refused:
        insula.connect(home).disk_usage("nobody")
    assert refused.value.code == "machine_not_found"
    printed = run_cli(home, "disk", "usage", "port-source")
    assert printed.returncode == 0
    assert b"port-source" in printed.stdout
