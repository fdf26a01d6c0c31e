"""What the doomed host does until its power is cut: `python -m tests.faults.power.load HOME DEVICE SETTINGS`.

Verbs, one after the other, while the guests write. Before each one a mark says what is begun, after it one says what is true
from then on of every machine that was touched.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import stat
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from insula.client.local import LocalClient
from insula.errors import InsulaError
from insula.model import requests
from insula.model.spec import LEAST_MEMORY, MachineSpec
from insula.operations.context import Context
from insula.operations.observe import observe
from insula.store import names
from insula.store.machines import BoardRecord, read_machine
from insula.store.names import Home
from insula.store.snapshots import snapshot_names
from tests.faults.power.blocks import Map
from tests.faults.power.engine import WriterEngine, remembered
from tests.faults.power.marks import Marker

_SPEC = MachineSpec(memory=LEAST_MEMORY, networks=())
_MOST_MACHINES = 4
_MOST_SNAPSHOTS = 3
_LATE = 60  # seconds after which a verb that hangs is shown


class Host:
    def __init__(self, home: Path, device: Path, settings: dict[str, Any]) -> None:
        self.marker = Marker(device)
        board = BoardRecord(**settings["board"])
        self.engine = WriterEngine(self.marker, board, Path("/tmp"), settings["seed"], lying=settings.get("fault") == "flush")
        self.home = Home(home)
        self.chance = random.Random(settings["seed"])
        self._client = LocalClient(context=Context(self.home, self.engine))
        self._snapshots: dict[str, dict[str, Map]] = {}  # what each snapshot holds, by the machine's UUID
        self._verbs = 0

    def do(self, request: requests.Request, *touched: str, base: Map | None = None, exact: bool = False) -> None:
        """Do a request that must succeed. ``touched``: the names of all machines it makes, changes or deletes; ``base``: what the
        disk of the last of them begins with; ``exact``: and still holds when the verb has ended, no guest going on."""
        self._verbs += 1
        verb = type(request).__name__
        self.marker.mark("begin", number=self._verbs, verb=verb, base=base)
        self._client.do(request)
        world = {name: self._describe(name) for name in touched}
        made = world[touched[-1]]
        if base is not None and made is not None and (exact or made["state"] == "paused"):
            self.engine.maps[made["uuid"]] = dict(base)
            made |= {"map": base, "writes": False}
        self.marker.mark("done", number=self._verbs, world=world)
        print(f"{time.monotonic():.2f} {verb} {' '.join(touched)}", flush=True)

    def _describe(self, name: str) -> dict[str, Any] | None:
        """What is true of a machine now; None: there is none of this name."""
        folder = self.home.machine(name)
        if not folder.exists():
            return None
        uuid, state = read_machine(folder).identity.uuid, observe(folder)[0].state
        known = self._snapshots.setdefault(uuid, {})
        holds = {}
        for snapshot in snapshot_names(folder):
            record_file = folder / names.SNAPSHOTS / snapshot / names.SNAPSHOT_RECORD
            identifier = json.loads(record_file.read_bytes())["id"]
            memory = record_file.parent / names.MEMORY
            if identifier not in known:
                known[identifier] = remembered(memory) if memory.exists() else dict(self.engine.maps.get(uuid, {}))
            holds[snapshot] = known[identifier]
        return {
            "uuid": uuid,
            "map": self.engine.maps.get(uuid, {}),
            "snapshots": holds,
            "suspended": (folder / names.SUSPENDED).exists(),
            "state": state.value,
            "writes": state.has_process,
        }

    # -- verbs -------------------------------------------------------------------------------------------------------------
    def create(self, name: str) -> None:
        self.do(requests.CreateMachine(image="tiny", name=name, spec=_SPEC), name)

    def restore(self, name: str, snapshot: str, *, keep: bool) -> None:
        request = requests.RestoreSnapshot(name=name, snapshot=snapshot, keep=keep)
        self.do(request, name, base=self._holds(name, snapshot), exact=not self._has_memory(name, snapshot))

    def clone(self, name: str, new: str, *, full: bool) -> None:
        base = self.engine.maps.get(read_machine(self.home.machine(name)).identity.uuid, {})
        self.do(requests.CloneMachine(name=name, new_name=new, full=full), name, new, base=dict(base), exact=True)

    def fork(self, name: str, new: str, snapshot: str) -> None:
        request = requests.ForkMachine(name=name, snapshot=snapshot, pattern=new)
        self.do(request, name, new, base=self._holds(name, snapshot))

    def _holds(self, name: str, snapshot: str) -> Map:
        described = self._describe(name)
        assert described is not None
        held: Map = described["snapshots"][snapshot]
        return held

    def _has_memory(self, name: str, snapshot: str) -> bool:
        return (self.home.machine(name) / names.SNAPSHOTS / snapshot / names.MEMORY).exists()

    def step(self) -> None:
        """One more verb, by chance, of those that are possible now."""
        found = {status.name: status.state.value for status in self._client.do(requests.ListMachines())}
        possible: list[tuple[int, Callable[[], None]]] = []
        for name, state in found.items():
            possible += self._possible(name, state, len(found))
        if len(found) < _MOST_MACHINES:
            possible.append((2 if found else 9, lambda: self.create(f"m{self._verbs}")))
        weights, steps = zip(*possible, strict=True)
        self.chance.choices(steps, weights)[0]()

    def _possible(self, name: str, state: str, count: int) -> list[tuple[int, Callable[[], None]]]:
        folder, new = self.home.machine(name), f"m{self._verbs}"
        taken = snapshot_names(folder)
        found: list[tuple[int, Callable[[], None]]] = []

        def may(weight: int, request: requests.Request, *more: str) -> None:
            found.append((weight, lambda: self.do(request, name, *more)))

        may(1, requests.RenameMachine(name=name, new_name=new), new)
        if state in ("stopped", "suspended"):
            may(4, requests.StartMachine(name=name))
            may(2 if count > 2 else 0, requests.DeleteMachine(name=name))
        if state in ("running", "paused"):
            may(2, requests.StopMachine(name=name))
            may(2, requests.SuspendMachine(name=name))
            may(1, requests.PauseMachine(name=name) if state == "running" else requests.ResumeMachine(name=name))
        if state == "stopped" and count < _MOST_MACHINES:
            found.append((2, lambda: self.clone(name, new, full=self.chance.random() < 0.3)))
        if state != "suspended" and len(taken) < _MOST_SNAPSHOTS:
            may(4, requests.CreateSnapshot(name=name))
        if taken:
            snapshot = self.chance.choice(taken)
            may(1, requests.DeleteSnapshot(name=name, snapshot=snapshot))
            found.append((3, lambda: self.restore(name, snapshot, keep=self.chance.random() < 0.5)))
            if count < _MOST_MACHINES and self._has_memory(name, snapshot):
                found.append((2, lambda: self.fork(name, new, snapshot)))
        return found


def _break(what: str) -> None:
    """A product with a fault in it, to see that it is found."""
    fsync = os.fsync

    def careless(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if folder != (what == "folders"):
            fsync(descriptor)

    if what in ("folders", "files"):
        os.fsync = careless  # type: ignore[assignment]  # it is the fault


def main() -> None:
    home, device, settings = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    faulthandler.dump_traceback_later(settings["seconds"] + _LATE, exit=True)
    _break(settings.get("fault", ""))
    host = Host(home, device, settings)
    host.create("first")
    deadline = time.monotonic() + settings["seconds"]
    steps = 0
    while steps < settings["steps"] and (settings["seconds"] < 0 or time.monotonic() < deadline):
        try:
            host.step()
        except (InsulaError, AssertionError):
            traceback.print_exc()
            print(f"failed after {steps} steps", flush=True)
            os._exit(1)
        steps += 1
    host.engine.close()
    os.sync()
    host.marker.mark("end")
    print(f"{steps} steps", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
