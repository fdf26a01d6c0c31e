"""``python armoured.py WHAT HOME``: what holds on a host that has AppArmor. WHAT: ``machine``, ``probe``, ``profile``, ``tool``.

Run inside a guest by test_apparmor.py; prints a JSON object of what was seen. Its machines find nothing to boot.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
import uuid
from pathlib import Path

from insula.client.local import LocalClient
from insula.disks.inspect import check_layer
from insula.disks.overlays import create_overlay
from insula.engines.base import DiskBoot, DiskPlan, Engine, LaunchPlan, LayerFile, LoadPlan, NewHead, SaveOrder
from insula.engines.load import load_engine
from insula.errors import InsulaError
from insula.guest.keeper import quit_machine
from insula.guest.link import open_link
from insula.host import apparmor
from insula.host.native import native_path
from insula.isolation.inhabitants import inhabitants
from insula.isolation.jail import LABEL, PROFILES
from insula.isolation.layers import layers_of
from insula.isolation.tool import run_tool, tool_argv, tool_calls
from insula.isolation.tpm import start_tpm
from insula.isolation.uids import jail_ids
from insula.model.requests import ProbeJail
from insula.model.units import MIB
from insula.operations.capture import protect
from insula.store import names
from insula.store.names import Home

_DISK, _MEMORY = 16 * MIB, 128 * MIB


def plan_of(
    engine: Engine, home: Home, name: str, layers: tuple[LayerFile, ...] = (), load: LoadPlan | None = None
) -> LaunchPlan:
    folder = home.machine(name)
    head = folder / names.DISKS / "0.qcow2"
    head.parent.mkdir(parents=True)
    create_overlay(head, _DISK)
    return LaunchPlan(
        name=name, folder=folder, uuid=str(uuid.uuid4()), generation=str(uuid.uuid4()), cpus=1, memory=_MEMORY,
        board=engine.choose_board("amd64"), boot=DiskBoot(), disks=(DiskPlan("disk0", LayerFile(head), layers),), load=load,
    )  # fmt: skip


def saved(engine: Engine, plan: LaunchPlan) -> tuple[LoadPlan, LayerFile]:
    """The machine's state, and the disk's layer of that instant."""
    layer = plan.folder / "layer.qcow2"
    layer.hardlink_to(plan.disks[0].head.path)
    head = NewHead("disk0", 1, plan.folder / "1.qcow2")
    create_overlay(head.path, _DISK)
    memory, state = plan.folder / names.MEMORY, plan.folder / names.STATE
    done = engine.save(
        plan.run_folder,
        SaveOrder(
            uuid=plan.uuid, memory=memory, state=state, machine=plan.board.machine, size=_MEMORY, heads=(head,),
            layers={"disk0": layer}, at_instant=lambda: None, switched=lambda: None,
        ),
    )  # fmt: skip
    protect(plan.folder, plan.uuid, memory=True)
    return LoadPlan(state, memory if done.offset is not None else None, done.offset or 0), LayerFile(layer)


def looked_at(plan: LaunchPlan) -> dict[str, object]:
    """The states of its jail's layers, and the labels of its processes."""
    found = inhabitants(plan.folder, plan.uuid)
    layers = {layer.name: (str(layer.state), layer.detail) for layer in layers_of(max(found))}
    labels = {called: Path(f"/proc/{pid}/attr/current").read_text().strip("\0\n") for pid, called in found.items()}
    return {"layers": layers, "labels": labels}


def launched(home: Home) -> dict[str, object]:
    """A machine whose QEMU came to answer, and one that goes on from its state."""
    engine, name = load_engine("qemu", home), f"web-{uuid.uuid4().hex[:8]}"
    plan = plan_of(engine, home, name)
    plans = [plan]
    try:
        engine.launch(plan)
        load, layer = saved(engine, plan)
        plans.append(plan_of(engine, home, f"{name}-child", (layer,), load))
        engine.launch(plans[1])
        engine.resume(plans[1].run_folder)
        return {"machine": looked_at(plan), "child": looked_at(plans[1]), "mapped": load.memory is not None}
    finally:
        for each in plans:
            with contextlib.suppress(InsulaError), open_link(each.run_folder) as link:
                quit_machine(link, "kill", timeout=60)


# Tried by root with all its rights, so that it is the profile which refuses; the names of those that were done.
_TRY = """
import ctypes, json, os, socket, subprocess
c = ctypes.CDLL(None, use_errno=True)
def call(done):
    if done != 0:
        raise OSError(ctypes.get_errno(), "refused")
def wait(pid):
    call(c.ptrace(16, pid, 0, 0))  # PTRACE_ATTACH
    c.ptrace(17, pid, 0, 0)  # PTRACE_DETACH
tries = {
    "have a socket of the internet": lambda: socket.socket(socket.AF_INET).close(),
    "have a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
    "have a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
    "have a socket of the machine": lambda: socket.socket(socket.AF_UNIX).close(),
    "mount": lambda: call(c.mount(b"none", b"/mnt", b"tmpfs", 0, None)) or c.umount(b"/mnt"),
    "use a right of root's": lambda: os.chroot("/"),
    "trace": lambda: wait(os.getppid()),
    "run a program of its root": lambda: subprocess.run(["/usr/bin/true"], check=True),
    "run another": lambda: subprocess.run(["/opt/true"], check=True),
}
done = []
for name, act in tries.items():
    try:
        act()
        done.append(name)
    except OSError:
        pass
print(json.dumps(done))
"""


def held_by_profile() -> dict[str, object]:
    """What a program of root's can do, without and with the profile of QEMU."""
    shutil.copy("/usr/bin/true", "/opt/true")
    words = ["--", "/usr/bin/python3", "-c", _TRY]
    keeper = str(native_path("insula-keeper"))
    found = {}
    for name, label in (("free", []), ("held", ["--label=insula-machine"])):
        found[name] = json.loads(subprocess.run([keeper, "enter", *label, *words], capture_output=True, check=True).stdout)
    return found


def _labels_below(pid: int) -> list[str]:
    """Of the processes below ``pid``, the last of which is the tool."""
    found = []
    while below := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        pid = int(below[-1])
        found.append(Path(f"/proc/{pid}/attr/current").read_text().strip("\0\n"))
    return found


def tooled(home: Home) -> dict[str, object]:
    """What tools do in their rooms, what holds one of them, and whether one runs a program that it was handed."""
    asked = str(uuid.uuid4())
    layer, program = home.root / f"layer-{asked}", home.root / "program"
    create_overlay(layer, _DISK)
    layer.chmod(0o444)
    check_layer(layer, _DISK, asked)
    shutil.copy("/usr/bin/true", program)
    program.chmod(0o755)
    ids = jail_ids(asked)
    handed = run_tool(["/r/0"], readable=[program], uid=ids.machine, largest=0, check=False)
    end, lifeline = start_tpm(home.root / f"tpm-{asked}", ids.tpm)
    with end:
        end.settimeout(60)
        end.sendall(struct.pack(">I", 1))  # CMD_GET_CAPABILITY
        answered = end.recv(8)[:4] == bytes(4)
        os.close(lifeline)
        end.recv(8)
    with tool_calls() as calls:
        argv = tool_argv(["sh", "-c", "echo; read -r end"], uid=ids.machine, calls=calls)
        with subprocess.Popen(argv, pass_fds=calls, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as room:
            assert room.stdin is not None
            assert room.stdout is not None
            room.stdout.readline()
            labels = _labels_below(room.pid)
            room.stdin.write(b"\n")
    return {"handed": handed.status, "tpm": answered, "label": labels[-1]}


def tried(home: Home) -> dict[str, str]:
    return {attempt.name: f"{attempt.result}: {attempt.detail}" for attempt in LocalClient(home.root).do(ProbeJail())}


def main() -> None:
    what, home = sys.argv[1], Home(Path(sys.argv[2]))
    home.prepare()
    seen: dict[str, object] = {"fact": str(apparmor.fact(LABEL, PROFILES).state)}
    if what == "machine":
        seen |= launched(home)
    elif what == "probe":
        seen |= tried(home)
    elif what == "tool":
        seen |= tooled(home)
    else:
        seen |= held_by_profile()
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
