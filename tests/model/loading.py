"""Bringing machines back: restore, start (after suspend too), fork and clone: docs/snapshots.md, "Loading one"."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from tests.model.steps import Step, Verb, cleared, folder_of, fsynced, noted, record_steps, sweep_step
from tests.model.taking import Take
from tests.model.world import RECORD, VARIABLES, Disk, Manifest, Qemu, Record, Violation, World


class Load:
    """One QEMU being brought up in a machine's folder, from the snapshot in the folder ``source`` or by booting."""

    def __init__(self, world: World, machine: str, folder: str, run: str) -> None:
        self.world, self.machine, self.folder, self.run = world, machine, folder, run
        self.qemu: Qemu | None = None

    def launch(self, plan: Record, source: str | None, lineage: int | None, *, ends: bool) -> None:
        """It stands, and ends (``ends``) or goes on standing when its maker dies."""
        self.qemu = self.world.launch(self.machine, self.folder, self.run, plan, source, lineage)
        self.qemu.when_maker_dies = "end" if ends else "stay"

    def told(self) -> Step:
        return Step("new keeper told to resume", partial(self._set, "resume"))

    def goes_on(self) -> Step:
        return Step("new guest goes on", self._go_on)

    def _set(self, what: str) -> None:
        if self.qemu:
            self.qemu.when_maker_dies = "resume" if what == "resume" else "stay"

    def _go_on(self) -> None:
        if self.qemu:
            self.qemu.standing = False
            self.qemu.when_maker_dies = "stay"


def fresh_disks(world: World, manifest: Manifest) -> tuple[Disk, ...]:
    """Fresh heads over a snapshot's layers."""
    token = world.count()
    return tuple(Disk(disk.name, disk.layers, f"disks/{disk.name}-{token}") for disk in manifest.disks)


def fresh_variables(world: World, folder: str) -> str:
    """The path of a copy of the firmware's variables; the one in use belongs to the disks in use."""
    return f"firmware/{VARIABLES}-{world.count()}"


def fresh_head_steps(world: World, folder: str, plan: Record, variables: str) -> list[Step]:
    """Heads, and a copy of the variables, that nobody names yet; the folders are fsynced too."""
    files = world.files
    steps = []
    for disk in plan.disks:
        path = f"{folder}/{disk.head}"
        steps += [
            Step(f"fresh head made: {disk.name}", partial(files.create, path, {})),
            fsynced(world, "fresh head on disk", path),
        ]
    copy = f"{folder}/{plan.variables}"
    return [
        *steps,
        Step("variables copied", lambda: files.create(copy, dict(files.read(variables)))),
        fsynced(world, "variables fsynced", copy),
        fsynced(world, "disks/ fsynced", f"{folder}/disks"),
        fsynced(world, "firmware/ fsynced", f"{folder}/firmware"),
    ]


def gone(world: World, folder: str, path: str) -> list[Step]:
    """Rename ``path`` out of sight for good, and only then remove what is in it."""
    target = f"{folder}/.gone-{world.count()}"
    files = world.files
    return [
        Step(
            f"renamed away: {path}",
            lambda: files.rename(f"{folder}/{path}", target) if files.exists(f"{folder}/{path}") else None,
        ),
        fsynced(world, f"fsynced away: {path}", folder),
        Step(f"removed: {path}", partial(files.remove_tree, target)),
    ]


def restore(world: World, machine: str, snapshot: str, *, keep: bool) -> Verb:
    """``snapshot restore`` in place; ``keep``: what is there becomes ``before-restore``."""
    folder = folder_of(machine)
    old = world.qemu(folder)
    source = f"{folder}/snapshots/{snapshot}"
    manifest = world.manifest(source)
    plan = Record(fresh_disks(world, manifest), fresh_variables(world, folder))
    lineage = world.new_lineage(world.instants[manifest.instant][1])
    load = Load(world, machine, folder, f"run-{world.count()}")

    def end_old() -> None:
        if old:
            world.end(old)
        world.legit[machine] = (*world.legit[machine], lineage)

    def take_run() -> None:
        world.files.remove_tree(f"{folder}/run")
        if world.files.exists(f"{folder}/{load.run}"):
            world.files.rename(f"{folder}/{load.run}", f"{folder}/run")

    def done() -> None:
        world.legit[machine] = (lineage,)
        if keep:
            world.present.add(f"{machine}@before-restore")

    steps = [noted(world, folder, "restore"), *fresh_head_steps(world, folder, plan, f"{source}/{VARIABLES}")]  # 1
    if manifest.memory:  # 2
        steps.append(Step("new QEMU stands", partial(load.launch, plan, source, lineage, ends=True)))
    steps += [
        *(_keep(world, machine) if keep else []),  # 3
        Step("old QEMU ended", end_old),
        *record_steps(world, folder, lambda: plan),  # 4
        *gone(world, folder, "suspended"),
        Step("run folder taken", take_run),  # 5
        sweep_step(world, folder),  # 7, beside what follows: as early as that may be
        load.told(),
        load.goes_on(),  # 6
        cleared(world, folder),
    ]

    def begin() -> None:
        world.suspended.pop(machine, None)
        if keep:
            world.present.discard(f"{machine}@before-restore")
            world.maybe.add(f"{machine}@before-restore")

    return Verb("restore", machine, steps, begin, done)


def _keep(world: World, machine: str) -> list[Step]:
    """Take ``before-restore``; the guest stands from its instant on."""
    take = Take(world, machine, goes_on=False)
    snapshots = f"{take.folder}/snapshots"
    older = gone(world, snapshots, "before-restore") if world.files.exists(f"{snapshots}/before-restore") else []
    return [*take.steps(), *take.manifest_steps(), *older, *take.published(f"{snapshots}/before-restore", snapshots)]


def fits(world: World, folder: str) -> bool:
    """Whether what a suspend kept belongs to the heads of the record."""
    if not world.files.exists(f"{folder}/suspended"):
        return False
    return heads(world.manifest(f"{folder}/suspended").disks) == heads(world.record(folder).disks)


def heads(disks: tuple[Disk, ...]) -> list[str]:
    return [disk.head for disk in disks]


def as_launched(record: Record) -> Record:
    """A QEMU knows all layers by the numbers they have when it starts."""
    return replace(record, disks=tuple(replace(disk, runs=()) for disk in record.disks))


def start(world: World, machine: str) -> Verb:
    """Start a stopped machine: from what a suspend kept if that fits, else by booting."""
    folder = folder_of(machine)
    source = f"{folder}/suspended" if fits(world, folder) else None
    load = Load(world, machine, folder, "run")

    def launch() -> None:
        load.launch(world.record(folder), source, None, ends=source is None)

    launched = as_launched(world.record(folder))

    away = gone(world, folder, "suspended") if world.files.exists(f"{folder}/suspended") else []
    steps = [
        noted(world, folder, "start"),
        *(record_steps(world, folder, lambda: launched) if launched != world.record(folder) else []),
        Step("new QEMU stands", launch),
        *away[:2],
        load.told(),
        load.goes_on(),
        *away[2:],
        *([sweep_step(world, folder)] if away else []),
        cleared(world, folder),
    ]

    def begin() -> None:
        if world.suspended.pop(machine, None) is not None and source is None:
            raise Violation(f"{machine} was suspended and boots")

    return Verb("start", machine, steps, begin)


def child_steps(
    world: World, parent: str, source: str, manifest: Manifest, child: str, view_token: int
) -> tuple[list[Step], list[Step]]:
    """A new running machine ``child`` from the snapshot in the folder ``source`` of the machine's folder ``parent``: what can be
    done before that is complete, and what is done then."""
    files = world.files
    staged = f"machines/.new-{world.count()}"
    plan = Record(fresh_disks(world, manifest), f"firmware/{VARIABLES}")
    load = Load(world, child, staged, "run")

    def launch() -> None:
        lineage = world.new_lineage(world.instants[view_token][1])
        world.legit[child] = (lineage,)
        load.launch(plan, source if manifest.memory else None, lineage, ends=True)

    def publish() -> None:
        files.rename(staged, folder_of(child))
        for disk in plan.disks:
            for layer in disk.layers:
                inode = world.open(folder_of(child), layer)
                world.frozen.setdefault(inode, dict(files.content(inode)))

    heads_made = fresh_head_steps(world, staged, plan, f"{source}/{VARIABLES}")
    of_instant = [step for step in heads_made if step.name.startswith(("variables", "firmware/"))]
    prepared = [
        *_stage(world, staged),
        *_link_layers(world, parent, staged, plan),
        *(step for step in heads_made if step not in of_instant),
        noted(world, staged, "fork"),
        *record_steps(world, staged, lambda: plan),
    ]
    return prepared, [
        *of_instant,
        Step("new QEMU stands", launch),
        Step("child published", publish),
        fsynced(world, "machines/ fsynced", "machines"),
        load.told(),
        load.goes_on(),
        cleared(world, folder_of(child)),
    ]


def _stage(world: World, staged: str) -> list[Step]:
    paths = [staged, *(f"{staged}/{part}" for part in ("disks", "layers", "firmware"))]
    return [Step(f"child's folder made: {path}", partial(world.files.mkdir, path)) for path in paths]


def _link_layers(world: World, parent: str, staged: str, plan: Record) -> list[Step]:
    layers = sorted({layer for disk in plan.disks for layer in disk.layers})
    steps = [Step(f"linked: {layer}", partial(world.files.link, f"{parent}/{layer}", f"{staged}/{layer}")) for layer in layers]
    return [*steps, fsynced(world, "child's layers/ fsynced", f"{staged}/layers")]


def fork_snapshot(world: World, machine: str, snapshot: str, child: str) -> Verb:
    folder = folder_of(machine)
    source = f"{folder}/snapshots/{snapshot}"
    manifest = world.manifest(source)
    prepared, then = child_steps(world, folder, source, manifest, child, manifest.instant)
    steps = [*prepared, *then]
    return Verb("fork", machine, steps, partial(world.maybe.add, child), partial(world.present.add, child))


def fork_running(world: World, machine: str, child: str) -> Verb:
    """Fork of a running machine: the snapshot taken for it never gets a name."""
    take = Take(world, machine)
    manifest = Manifest(take.token, take.after.disks, memory=True)
    prepared, then = child_steps(world, take.folder, take.staged, manifest, child, take.token)
    steps = [
        *take.steps(prepared),
        *then,
        Step("staged snapshot removed", partial(world.files.remove_tree, take.staged)),
        cleared(world, take.folder),
    ]
    return Verb("fork", machine, steps, partial(world.maybe.add, child), partial(world.present.add, child))


def clone(world: World, machine: str, child: str) -> Verb:
    """A stopped machine from a stopped one: layers linked, heads and variables copied."""
    files, folder = world.files, folder_of(machine)
    staged = f"machines/.new-{world.count()}"
    record = world.record(folder)

    def copy(path: str) -> None:
        files.create(f"{staged}/{path}", dict(files.read(f"{folder}/{path}")))

    def publish() -> None:
        view = world.view_of(folder, record.disks, record.variables, heads=True)
        world.legit[child] = (world.new_lineage(view),)
        files.rename(staged, folder_of(child))

    copied = [*heads(record.disks), record.variables]
    steps = [
        *_stage(world, staged),
        *_link_layers(world, folder, staged, record),
        *(Step(f"copied: {path}", partial(copy, path)) for path in copied),
        *(fsynced(world, f"copy fsynced: {path}", f"{staged}/{path}") for path in copied),
        *(fsynced(world, f"child's {part}/ fsynced", f"{staged}/{part}") for part in ("disks", "firmware")),
        noted(world, staged, "clone"),
        *record_steps(world, staged, lambda: as_launched(world.record(folder))),
        Step("child published", publish),
        fsynced(world, "machines/ fsynced", "machines"),
        cleared(world, folder_of(child)),
    ]
    return Verb("clone", machine, steps, partial(world.maybe.add, child), partial(world.present.add, child))


def new_machine(world: World, machine: str, disks: int) -> None:
    """What ``create`` leaves: a stopped machine with one layer under each head; all of it on the disk."""
    files, folder = world.files, folder_of(machine)
    files.mkdir("machines")
    for path in (folder, *(f"{folder}/{part}" for part in ("disks", "layers", "firmware", "snapshots"))):
        files.mkdir(path)
    names = ["root", "data", "logs"][:disks]
    for name in names:
        files.create(f"{folder}/layers/{name}-image", {0: world.count()})
        files.create(f"{folder}/disks/{name}-0", {})
        files.freeze(f"{folder}/layers/{name}-image")
    files.create(f"{folder}/firmware/{VARIABLES}", {0: world.count()})
    record = Record(tuple(Disk(name, (f"layers/{name}-image",), f"disks/{name}-0") for name in names), f"firmware/{VARIABLES}")
    files.create(f"{folder}/{RECORD}", {"json": record})
    files.cut_power(lambda _: True)
    world.frozen |= {
        inode: dict(files.content(inode)) for name in names if (inode := files.inode(f"{folder}/layers/{name}-image"))
    }
    world.legit[machine] = (world.new_lineage(world.view_of(folder, record.disks, record.variables, heads=True)),)
    world.present.add(machine)
