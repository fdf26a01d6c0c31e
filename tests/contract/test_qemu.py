"""Promises that only real QEMU can keep."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from insula.engines.base import DiskPlan, LayerFile, NicPlan
from insula.engines.qemu import launch as launch_module
from insula.engines.qemu import monitor
from insula.engines.qemu.probe import EMULATED_CPU, learn
from insula.errors import HostLacks, MachineEnded
from insula.host.accelerators import prove
from insula.host.process import run
from insula.store import names
from insula.store.machines import BoardRecord
from tests.contract.conftest import Bench

pytestmark = [pytest.mark.guest, pytest.mark.parametrize("bench", ["qemu"], indirect=True)]


def processes_of(run_folder: Path) -> dict[str, Path]:
    """The /proc folders of keeper and QEMU, found by the name of the machine on QEMU's command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"guest={run_folder.parent.name},debug-threads=on".encode() in words:
            kind = "qemu" if words[0].endswith(b"qemu-system-x86_64") else "keeper" if b"inner" in words[1:2] else "porter"
            found[kind] = entry
    return found


def status_of(process: Path) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)


def test_an_accelerator_is_proved_or_said_not_to_work(bench: Bench) -> None:
    binary = shutil.which("qemu-system-x86_64")
    assert binary is not None
    proof = prove(binary, "tcg", EMULATED_CPU)
    assert (proof.works, proof.detail) == (True, "a 64-bit guest came to its answer")
    refused = prove(binary, "tcg", "nonsense")
    assert not refused.works
    assert "nonsense" in refused.detail


def test_what_was_found_out_is_not_found_out_again(bench: Bench) -> None:
    first = learn(bench.home, "amd64")
    path = bench.home.host / "qemu-amd64.json"
    path.write_bytes(path.read_bytes().replace(b'"no ', b'"NO '))
    inode = path.stat().st_ino
    assert learn(bench.home, "amd64") == first
    assert path.stat().st_ino == inode
    path.write_bytes(b"{damaged")
    assert learn(bench.home, "amd64").build == first.build
    assert path.stat().st_ino != inode


def test_qemus_last_words_are_told(bench: Bench) -> None:
    plan = bench.plan()
    broken = msgspec.structs.replace(plan.board, cpu="nonsense")
    with pytest.raises(MachineEnded, match="nonsense") as caught:
        bench.launch(bench.plan(board=broken))
    assert caught.value.code == "failed_to_start"
    assert not (plan.folder / names.RUN).exists()
    assert "nonsense" in (plan.folder / names.QEMU_LOG).read_text()


def test_too_much_memory_is_said_so(bench: Bench) -> None:
    with pytest.raises(HostLacks) as caught:
        bench.launch(bench.plan(memory=1 << 39))
    assert caught.value.code == "no_memory"


def test_every_process_of_the_machine_is_jailed(bench: Bench) -> None:
    run_folder = bench.launch(bench.plan("jailed"))
    processes = processes_of(run_folder)
    assert set(processes) == {"qemu", "keeper", "porter"}
    ours = {name: os.readlink(f"/proc/self/ns/{name}") for name in ("user", "mnt", "pid", "net", "ipc", "uts")}
    uid = None
    for kind in ("qemu", "keeper"):
        status = status_of(processes[kind])
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        for name, inode in ours.items():
            assert os.readlink(processes[kind] / "ns" / name) != inode, name
        uid = status["Uid"].split()[0]
        if os.geteuid() == 0:
            assert int(uid) >= 10_000
    # The keeper is held to our list of calls where there is one, QEMU to its own -sandbox, too.
    listed = os.uname().machine == "x86_64"
    assert [int(status_of(processes[kind])["Seccomp_filters"]) for kind in ("keeper", "qemu")] == [listed, listed + 1]
    assert status_of(processes["keeper"])["NSpid"].split()[-1] == "1"
    mounts = (processes["qemu"] / "mountinfo").read_text().splitlines() if os.geteuid() == 0 else []
    for line in mounts:
        fields = line.split()
        assert fields[4] == "/dev/null" or "ro" in fields[5].split(","), line


def test_the_bystander_that_made_the_namespaces_is_gone(bench: Bench) -> None:
    run_folder = bench.launch(bench.plan("alone"))
    processes = processes_of(run_folder)
    # QEMU's parent is the keeper, whose parent is the porter: nobody in between, once the one in between has died.
    assert status_of(processes["qemu"])["PPid"] == processes["keeper"].name
    deadline = time.monotonic() + 30
    while (parent := status_of(processes["keeper"])["PPid"]) != processes["porter"].name:
        assert time.monotonic() < deadline, f"the keeper's parent is {parent}"
        time.sleep(0.05)  # nobody tells when a process gets another parent


def test_a_chain_of_layers_is_opened_as_the_record_says(bench: Bench) -> None:
    plan = bench.plan()
    layers = []
    for index in range(3):
        layer = plan.folder / f"layer{index}.qcow2"
        run(["qemu-img", "create", "-q", "-f", "qcow2", layer, "16M"])
        layer.chmod(0o444)
        layers.append(LayerFile(layer))
    # Its header names a file that is not there, and must not be asked.
    run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/shadow", plan.folder / "head.qcow2", "16M"])
    disk = DiskPlan("disk0", LayerFile(plan.folder / "head.qcow2"), tuple(layers), serial="root")
    run_folder = bench.launch(bench.plan(disks=(disk,)))
    answer = monitor.execute(run_folder / names.QMP_SOCKET, "query-named-block-nodes", {"flat": True})
    assert isinstance(answer, list)
    nodes = {node["node-name"]: node for node in answer}
    assert {"disk0", "disk0-0", "disk0-1", "disk0-2", "disk0-3"} <= set(nodes)
    assert [nodes[f"disk0-{index}"]["ro"] for index in range(4)] == [True, True, True, False]
    assert "/etc/shadow" not in str(nodes["disk0-3-file"])


def test_limits_can_be_set_on_a_running_disk(bench: Bench) -> None:
    run_folder = bench.launch(bench.plan())
    value = {"bps-total": 20 << 20}
    path = "/objects/limit-disk0"
    monitor.execute(run_folder / names.QMP_SOCKET, "qom-set", {"path": path, "property": "limits", "value": value})
    limits = monitor.execute(run_folder / names.QMP_SOCKET, "qom-get", {"path": path, "property": "limits"})
    assert isinstance(limits, dict)
    assert limits["bps-total"] == 20 << 20


def test_there_is_room_to_plug_into(bench: Bench) -> None:
    run_folder = bench.launch(bench.plan())
    qmp = run_folder / names.QMP_SOCKET
    monitor.execute(qmp, "object-add", {"qom-type": "memory-backend-ram", "id": "more", "size": 128 << 20})
    monitor.execute(qmp, "device_add", {"driver": "pc-dimm", "id": "dimm0", "memdev": "more"})
    places = monitor.execute(qmp, "query-hotpluggable-cpus")
    assert isinstance(places, list)
    free = [place for place in places if "qom-path" not in place]
    assert len(free) == 7
    monitor.execute(qmp, "device_add", {"driver": free[0]["type"], "id": "cpu1", **free[0]["props"]})
    monitor.execute(qmp, "device_add", {"driver": "virtio-rng-pci", "id": "plugged", "bus": "rp7"})


def test_the_network_helper_ends_with_the_machine(bench: Bench, eventually: Callable[[Callable[[], bool]], None]) -> None:
    if shutil.which("passt") is None:
        pytest.skip("passt is not installed")

    def helpers() -> set[str]:
        return {path.parent.name for path in Path("/proc").glob("[0-9]*/comm") if _read(path).startswith("passt")}

    before = helpers()
    run_folder = bench.launch(bench.plan(nics=(NicPlan("52:54:00:00:00:01"),)))
    ours = helpers() - before
    assert len(ours) == 1
    (helper,) = ours
    if os.geteuid() == 0:
        assert status_of(Path("/proc", helper))["Uid"].split()[0] != "0"
    bench.end(run_folder)
    eventually(lambda: not Path("/proc", helper).exists() or status_of(Path("/proc", helper))["State"].startswith("Z"))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def test_a_socket_path_longer_than_the_kernel_takes(bench: Bench) -> None:
    long = bench.home.root / ("x" * 120) / ("y" * 120)
    bench.home.machines = long
    run_folder = bench.launch(bench.plan())
    bench.engine.pause(run_folder)
    assert not monitor.query_status(run_folder / names.QMP_SOCKET).running


def test_board_of_another_version(bench: Bench) -> None:
    """A machine made on an older QEMU keeps that machine type here."""
    board = bench.engine.choose_board("amd64")
    older = BoardRecord("pc-q35-8.2", board.cpu, "8.2.0", board.accelerator)
    assert bench.engine.choose_board("amd64", older).machine == "pc-q35-8.2"
    run_folder = bench.launch(bench.plan(board=older))
    assert monitor.query_status(run_folder / names.QMP_SOCKET).running


def test_a_start_that_is_interrupted_leaves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when the porter was started and before the keeper said it is ready."""

    def interrupted(listening: int) -> None:
        raise KeyboardInterrupt

    plan = bench.plan("interrupted")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(launch_module, "_hear", interrupted)
        bench.launch(plan)
    assert not (plan.folder / names.RUN).exists()
    assert "qemu" not in processes_of(plan.folder / names.RUN)
    bench.launch(plan)


def test_a_jail_that_is_refused_is_said_so(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a host that forbids user namespaces: bubblewrap speaks and ends, nothing waits for a keeper that never comes."""
    plan = bench.plan()
    with monkeypatch.context() as patch, pytest.raises(HostLacks, match="bwrap") as caught:
        patch.setattr(launch_module, "jail_root", lambda plan: tmp_path / "nowhere")
        bench.launch(plan)
    assert caught.value.code == "jail_refused"
    assert not (plan.folder / names.RUN).exists()
