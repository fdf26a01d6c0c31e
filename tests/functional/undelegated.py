"""``python -m tests.functional.undelegated HOME``: a machine of somebody who can make no control group.

Prints what was seen as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import insula
from insula.errors import InsulaError
from insula.host import cgroup_trees
from insula.host.scheduling import has_autogroup, online_cpus
from insula.operations.context import Context
from insula.operations.holding import hold_down
from insula.resources.groups import leaf_of
from insula.resources.holds import Hold
from insula.store.names import Home


def niceness(pid: int) -> int:
    """Of its session, where the kernel weighs those, else of its threads. Format: ``/autogroup-7 nice 3``."""
    if has_autogroup():
        return int(Path(f"/proc/{pid}/autogroup").read_text().split()[-1])
    return max(os.getpriority(os.PRIO_PROCESS, int(name)) for name in os.listdir(f"/proc/{pid}/task"))


def refusal(machine: insula.Machine, **limits: str | float) -> str:
    try:
        machine.limit(**limits)
    except InsulaError as error:
        return error.code
    return ""


def main(home: Path) -> None:
    cpu = online_cpus()[0]
    limits: dict[str, str | float] = {"pin": str(cpu), "cpu_shares": 512, "disk_rate": "8M"}
    found: dict[str, object] = {"groups": sorted({name for tree in cgroup_trees.usable_trees() for name in tree.controllers})}
    with insula.connect(home).run("tiny", memory="128M", network="none", cold=True, limits=limits) as machine:
        shown = machine.show()
        pid = next(pid for name, pid in shown.process.items() if name.startswith("qemu"))
        found["holds"] = {hold.limit: [hold.holds, hold.by] for hold in shown.holds}
        found["bound"] = all(os.sched_getaffinity(int(name)) == {cpu} for name in os.listdir(f"/proc/{pid}/task"))
        found["nice"] = niceness(pid)
        found["refused"] = [refusal(machine, cpu_limit=0.5), refusal(machine, io_weight=10), refusal(machine, cpu_shares=4096)]
        machine.limit(cpu_shares=256, pin="none")
        found["nicer"] = niceness(pid)
        found["unbound"] = all(os.sched_getaffinity(int(name)) == {*online_cpus()} for name in os.listdir(f"/proc/{pid}/task"))
        usage = machine.usage()
        found["used"] = usage is not None and usage.cpu.time > 0 and usage.memory.own > 0
        hold_down(Context(Home(home)), machine.name, {"cpu": Hold(0.4, 0.8)})
        found["held"] = niceness(pid)
        hold_down(Context(Home(home)), machine.name, {})
        found["let go"] = niceness(pid)
        found["leaf"] = leaf_of(home / "machines" / machine.name / "run")
        found["layer"] = next(str(layer.state) for layer in machine.security().layers if layer.name == "control group")
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
