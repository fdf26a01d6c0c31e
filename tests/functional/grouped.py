"""``python grouped.py HOME``: control groups as machines have them, tried with processes that stand for machines.

Run inside a guest whose kernel has version 2 alone, by test_groups_v2.py; prints a JSON object of what was seen.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from insula.host import cgroup_trees, cgroups
from insula.host.cgroups import Group
from insula.model.limits import Limits
from insula.resources import groups
from insula.resources.shares import Setting, settings
from insula.store import names
from insula.store.names import Home

LIMITS = Limits(cpu_shares=2048, cpu_limit=200, cpu_burst=100, pin=(0,), io_weight=50)
MEMORY = 64 << 20
ID = "5f0c1a52-0000-4000-8000-000000000000"


def cpus() -> str:
    return Path("/sys/devices/system/cpu/online").read_text().strip()


def start(home: Home, run: Path, wanted: Callable[[Group], Iterable[Setting]], code: str) -> subprocess.Popen[bytes]:
    """A Python that runs ``code`` and was in its group before it was a Python, as a machine's QEMU is."""
    with groups.new_place(home, ID, wanted) as place, cgroups.warmed():
        (run / names.GROUP).write_text(place.leaf)

        def enter() -> None:
            for entrance in place.entrances:
                os.write(entrance, b"0")

        return subprocess.Popen([sys.executable, "-c", code], preexec_fn=enter)


def ran(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def held(home: Home, run: Path) -> dict[str, object]:
    """What a group is held to, and what comes of it."""
    child = start(home, run, lambda group: settings(LIMITS, MEMORY, group.versions(), cpus()), "while True: pass")
    group = groups.group_of(home, run)
    assert group is not None
    found: dict[str, object] = {"versions": group.versions(), "inside": list(group.members().values()) == [{child.pid}]}
    wished = {setting.file: setting for setting in settings(LIMITS, MEMORY, group.versions(), cpus())}
    found["files"] = {file: (group.read(setting.controller, file) or "").strip() for file, setting in wished.items()}
    begun, before = time.monotonic(), ran(child.pid)
    while ran(child.pid) < before + 0.5:
        time.sleep(0.05)
    found["used"] = (ran(child.pid) - before) / (time.monotonic() - begun)
    groups.write_all(group, settings(Limits(), MEMORY, group.versions(), cpus()))
    found["taken back"] = (
        (group.read("cpu", "cpu.max") or "").strip(),
        (group.read("cpuset", "cpuset.cpus") or "").strip() == cpus(),
    )
    [tree] = group.trees
    aside = tree.base / "elsewhere"
    aside.mkdir()
    (aside / "cgroup.procs").write_text(str(child.pid))
    group.folder(tree).rmdir()
    found["removed"] = groups.group_of(home, run) is None
    with groups.mended(home, run, [child.pid]) as again:
        assert again is not None
        found["mended"] = list(again.members().values()) == [{child.pid}]
    aside.rmdir()
    groups.sweep(home)
    found["kept while used"] = groups.group_of(home, run) is not None
    child.kill()
    child.wait()
    groups.drop(home, ID, timeout=10.0)
    return found


def fenced(home: Home, run: Path) -> dict[str, object]:
    """Memory beyond the fence."""

    def narrow(group: Group) -> list[Setting]:
        all_of_it = settings(LIMITS, MEMORY, group.versions(), cpus())
        return [each._replace(value=str(MEMORY)) if each.controller == "memory" else each for each in all_of_it]

    status = start(home, run, narrow, "b = bytearray(200 << 20)").wait()
    group = groups.group_of(home, run)
    assert group is not None
    found: dict[str, object] = {"status": status, "out of memory": groups.was_out_of_memory(group)}
    groups.sweep(home)
    found["left"] = sorted(cgroups.leaves(names.home_key(home.root), cgroup_trees.usable_trees()))
    return found


def main(root: Path) -> None:
    home, run = Home(root), root / "machines" / "web" / "run"
    run.mkdir(parents=True)
    trees = cgroup_trees.usable_trees()
    print(json.dumps({"kind": cgroup_trees.kind_of(trees), "base": str(trees[0].base), **held(home, run), **fenced(home, run)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
