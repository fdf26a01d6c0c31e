"""Taking a snapshot, and suspending: docs/snapshots.md, "Taking one". The numbers are those of its table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from tests.model.steps import Step, Verb, atomic, cleared, folder_of, fsynced, noted, record_steps, sweep_step
from tests.model.world import MANIFEST, VARIABLES, Manifest, Qemu, Record, World


class Take:
    """One snapshot being taken of a machine; ``goes_on``: its guest runs on afterwards."""

    def __init__(self, world: World, machine: str, *, goes_on: bool = True) -> None:
        self.world = world
        self.machine = machine
        self.folder = folder_of(machine)
        self.token = world.count()
        self.staged = f"{self.folder}/snapshots/.new-{self.token}"
        self.qemu: Qemu | None = world.qemu(self.folder)
        self.goes_on = goes_on
        self.ram: int | None = None
        self.before = world.record(self.folder)
        self.after = Record(
            tuple(
                replace(disk, layers=(*disk.layers, f"layers/{disk.name}-{self.token}"), head=f"disks/{disk.name}-{self.token}")
                for disk in self.before.disks
            ),
            self.before.variables,
        )
        self.former = [disk.layers[-1] for disk in self.after.disks]

    def steps(self, meanwhile: Sequence[Step] = ()) -> list[Step]:
        """Steps 1 to 10. ``meanwhile``: what those do who wait for it, before it is taken."""
        qemu = self.qemu
        return [
            *self._prepare(),
            *meanwhile,
            *(self._stand(qemu) if qemu else [Step("the instant of a stopped machine", self._instant)]),
            *self._freeze(),
        ]

    def manifest_steps(self) -> list[Step]:
        return atomic(self.world, "manifest", f"{self.staged}/{MANIFEST}", self.manifest)

    def manifest(self) -> Manifest:
        return Manifest(self.token, self.after.disks, self.ram is not None)

    def published(self, path: str, folder: str) -> list[Step]:
        """Step 11's second half: the folder gets its name ``path``, for good."""
        return [Step("published", lambda: self._publish(path)), fsynced(self.world, "publication fsynced", folder)]

    def _publish(self, path: str) -> None:
        self.world.files.rename(self.staged, path)
        for layer in self.former:
            inode = self.world.open(self.folder, layer)
            self.world.frozen[inode] = dict(self.world.files.content(inode))

    def _prepare(self) -> list[Step]:
        world, files = self.world, self.world.files
        steps = [Step("folder made", self._make_folder), noted(world, self.folder, "snapshot")]  # 1
        for old, new in zip(self.before.disks, self.after.disks, strict=True):  # 2
            head, layer, source = (f"{self.folder}/{path}" for path in (new.head, new.layers[-1], old.head))
            steps.append(Step(f"head made: {old.name}", partial(files.create, head, {})))
            steps.append(fsynced(world, f"head fsynced: {old.name}", head))
            steps.append(Step(f"layer linked: {old.name}", partial(files.link, source, layer)))
        return [
            *steps,
            fsynced(world, "disks/ fsynced", f"{self.folder}/disks"),
            fsynced(world, "layers/ fsynced", f"{self.folder}/layers"),
            *record_steps(world, self.folder, lambda: self.after),  # 3
        ]

    def _make_folder(self) -> None:
        self.world.files.mkdir(f"{self.folder}/snapshots")
        self.world.files.mkdir(self.staged)

    def _stand(self, qemu: Qemu) -> list[Step]:
        def told() -> None:
            qemu.when_maker_dies = "resume"

        def go_on() -> None:
            qemu.standing = False
            qemu.when_maker_dies = "stay"

        def write_memory() -> None:
            qemu.standing = True
            self._instant()

        return [
            Step("keeper told to resume", told),  # 4
            Step("memory written, guest stands", write_memory),  # 5
            Step("QEMU switches", lambda: self.world.switch(qemu, self.folder, self.after.disks)),  # 6
            Step("state written", self._write_state),  # 7
            *([Step("guest goes on", go_on)] if self.goes_on else []),  # 8
        ]

    def _instant(self) -> None:
        world = self.world
        if self.qemu:
            self.ram = self.qemu.ram
            world.instants[self.token] = (self.ram, world.history[self.ram])
        else:
            view = world.view_of(self.folder, self.before.disks, self.before.variables, heads=True)
            world.instants[self.token] = (None, view)
            self._write_state()

    def _write_state(self) -> None:
        files = self.world.files
        if self.ram is not None:
            files.create(f"{self.staged}/state", {0: self.ram})
        files.create(f"{self.staged}/{VARIABLES}", dict(files.read(f"{self.folder}/{self.before.variables}")))

    def _freeze(self) -> list[Step]:
        world, files = self.world, self.world.files
        parts = [VARIABLES, *(["state", "memory"] if self.qemu else [])]
        steps = []
        for old, layer in zip(self.before.disks, self.former, strict=True):  # 9
            path = f"{self.folder}/{layer}"
            steps.append(fsynced(world, f"former head fsynced: {old.name}", path))
            steps.append(Step(f"layer read-only: {old.name}", partial(files.freeze, path)))
        for old in self.before.disks:
            path = f"{self.folder}/{old.head}"
            steps.append(Step(f"old name goes: {old.name}", partial(files.unlink, path)))
        if self.qemu:  # 10
            steps.append(Step("memory copied", lambda: _copy_memory(world, self.staged, self.ram)))
        return steps + [fsynced(world, f"{part} fsynced", f"{self.staged}/{part}") for part in parts]


def _copy_memory(world: World, staged: str, ram: int | None) -> None:
    world.files.create(f"{staged}/memory", {0: ram, 1: ram})


def create_snapshot(world: World, machine: str, snapshot: str) -> Verb:
    """``snapshot create`` of a running, paused or stopped machine."""
    take = Take(world, machine)
    target = f"{take.folder}/snapshots/{snapshot}"
    key = f"{machine}@{snapshot}"
    steps = [
        *take.steps(),
        *take.manifest_steps(),
        *take.published(target, f"{take.folder}/snapshots"),
        cleared(world, take.folder),
    ]
    return Verb("snapshot", machine, steps, lambda: world.maybe.add(key), lambda: world.present.add(key))


def suspend(world: World, machine: str) -> Verb:
    """The same without step 8; published only once nobody lets the guest go on and QEMU has ended."""
    take = Take(world, machine, goes_on=False)
    qemu = take.qemu
    assert qemu is not None

    def kept() -> None:
        world.suspended[machine] = take.token

    def let_go() -> None:
        qemu.when_maker_dies = "stay"

    steps = [
        *take.steps(),
        *take.manifest_steps(),
        fsynced(world, "live variables fsynced", f"{take.folder}/{take.before.variables}"),
        Step("keeper lets go", let_go),
        noted(world, take.folder, "suspend", "publish"),
        Step("QEMU ended", lambda: world.end(qemu)),
        *take.published(f"{take.folder}/suspended", take.folder),
        Step("run folder removed", lambda: world.files.remove_tree(f"{take.folder}/run")),
        cleared(world, take.folder),
    ]
    return Verb("suspend", machine, steps, done=kept)


def failed_snapshot(world: World, machine: str, *, switched: bool) -> Verb:
    """One that fails at the switch and undoes what it did; ``switched``: only the answer was lost, QEMU did it."""
    take = Take(world, machine)
    steps = take.steps()
    switch = next(index for index, step in enumerate(steps) if step.name == "QEMU switches")
    goes_on = next(step for step in steps if step.name == "guest goes on")
    undo = [
        goes_on,
        Step("staged snapshot removed", partial(world.files.remove_tree, take.staged)),
        *record_steps(world, take.folder, lambda: record_after_failure(take)),
        sweep_step(world, take.folder),
        cleared(world, take.folder),
    ]
    return Verb("failed snapshot", machine, [*steps[: switch + switched], *undo])


def record_after_failure(take: Take) -> Record:
    """QEMU is asked what it has open."""
    assert take.qemu is not None
    old = {disk.name: take.world.files.find(f"{take.folder}/{disk.head}") for disk in take.before.disks}
    return take.before if take.qemu.heads == old else take.after
