"""Engines to be held to the contract: the fake, and real QEMU with nothing to boot."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from insula.engines.base import DiskBoot, DiskPlan, Engine, LaunchPlan, LayerFile
from insula.engines.fake.engine import FakeEngine
from insula.engines.load import load_engine
from insula.errors import MachineEnded
from insula.host.process import run
from insula.model.units import MIB
from insula.store import names
from insula.store.names import Home


@dataclass
class Bench:
    """An engine and what a test needs around it."""

    engine: Engine
    home: Home
    launched: list[Path] = field(default_factory=list)

    def plan(self, name: str = "web", **changes: object) -> LaunchPlan:
        """A machine with one empty disk: its firmware finds nothing to boot and waits for ever, which is all a contract needs."""
        folder = self.home.machine(name)
        (folder / names.DISKS).mkdir(parents=True, exist_ok=True)
        head = folder / names.DISKS / "0.qcow2"
        if not head.exists():
            run(["qemu-img", "create", "-q", "-f", "qcow2", head, "16M"])
        values: dict = {
            "name": name,
            "folder": folder,
            "uuid": str(uuid.uuid4()),
            "generation": str(uuid.uuid4()),
            "cpus": 1,
            "memory": 128 * MIB,
            "board": self.engine.choose_board("amd64"),
            "boot": DiskBoot(),
            "disks": (DiskPlan("disk0", LayerFile(head)),),
        }
        return LaunchPlan(**{**values, **changes})

    def launch(self, plan: LaunchPlan) -> Path:
        """Launch; the machine is ended after the test."""
        self.engine.launch(plan)
        run_folder = plan.folder / names.RUN
        self.launched.append(run_folder)
        return run_folder

    def end(self, run_folder: Path) -> None:
        """The machine ends, not by the engine's doing."""
        if isinstance(self.engine, FakeEngine):
            self.engine.end(run_folder)
            return
        from insula.guest.keeper import quit_machine
        from insula.guest.link import open_link

        with open_link(run_folder) as link:
            quit_machine(link, "kill", timeout=20)


@pytest.fixture(params=["fake", "qemu"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    if request.param == "qemu" and shutil.which("qemu-system-x86_64") is None:
        pytest.skip("QEMU is not installed")
    home = Home(tmp_path / "home")
    home.prepare()
    shared = Path(os.environ["INSULA_HOME"]) / "host"
    if request.param == "qemu" and shared.is_dir():  # what was proved of accelerators in this run need not be proved again
        shutil.copytree(shared, home.host, dirs_exist_ok=True)
    bench = Bench(load_engine(request.param, home), home)
    yield bench
    for run_folder in bench.launched:
        with contextlib.suppress(MachineEnded):
            bench.end(run_folder)
    if request.param == "qemu":
        shared.mkdir(parents=True, exist_ok=True)
        for path in home.host.glob("qemu-*.json"):
            shutil.copy(path, shared)


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Wait until a condition holds that another process brings about, at most ten seconds."""
    import time

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.01)  # between two looks at the condition

    return wait
