"""What must hold, whatever happened: checked after recovery, on what is there."""

from __future__ import annotations

from tests.model.loading import start
from tests.model.recovery import recover_all
from tests.model.steps import folder_of, manifests, named_files
from tests.model.world import JOURNAL, RECORD, VARIABLES, Violation, World


def check(world: World) -> None:
    """All invariants of a world that is recovered. Changes nothing. Raises Violation."""
    machines = set(world.files.names("machines"))
    _compare({name for name in world.present if "@" not in name}, {name for name in world.maybe if "@" not in name}, machines)
    for machine in sorted(machines):
        folder = folder_of(machine)
        _check_files(world, folder)
        _check_disks(world, machine)
        _check_snapshots(world, machine)
        if world.files.exists(f"{folder}/suspended"):
            _check_suspended(world, machine)
        if machine in world.suspended and not world.files.exists(f"{folder}/suspended"):
            raise Violation(f"what the suspend of {machine} kept is gone")
    for inode, content in world.frozen.items():
        if world.files.content(inode) != content and _is_used(world, inode):
            raise Violation(f"a published layer changed: {world.files.content(inode)}, was {content}")


def check_lasting(world: World) -> None:
    """The invariants, now and after every machine was started, lived a little, and lost power. Uses the world up."""
    check(world)
    for machine in world.files.names("machines"):
        if world.qemu(folder_of(machine)) is None:
            start(world, machine).run()
    world.guests_live()
    check(world)
    world.cut_power(lambda _: False)
    for _ in recover_all(world):
        pass
    check(world)


def _compare(must: set[str], may: set[str], there: set[str]) -> None:
    if lost := must - there:
        raise Violation(f"lost: {', '.join(sorted(lost))}")
    if extra := there - must - may:
        raise Violation(f"left over or come back: {', '.join(sorted(extra))}")


def _check_files(world: World, folder: str) -> None:
    """Nothing is there that nobody names, and all that is named is there."""
    named, layers = named_files(world, folder)
    expected = {RECORD, "disks", "layers", "firmware", *named}
    if world.qemu(folder):
        expected.add("run")
    for path in manifests(world, folder):
        expected |= {path, *(f"{path}/{part}" for part in ("snapshot.json", VARIABLES))}
        expected |= {f"{path}/memory", f"{path}/state"} if world.manifest(f"{folder}/{path}").memory else set()
    there = {path.removeprefix(f"{folder}/") for path in world.files.walk(folder)} - {"snapshots", JOURNAL}
    if missing := expected - there:
        raise Violation(f"{folder} lacks {', '.join(sorted(missing))}")
    if leaked := there - expected:
        raise Violation(f"{folder} holds what nobody names: {', '.join(sorted(leaked))}")
    for layer in layers:
        if not world.files.nodes[world.open(folder, layer)].readonly:
            raise Violation(f"{folder}: {layer} can be written")


def _check_disks(world: World, machine: str) -> None:
    """The machine can start with disks its guest was promised; a running guest sees what it wrote."""
    folder = folder_of(machine)
    record = world.record(folder)
    view = world.view_of(folder, record.disks, record.variables, heads=True)
    world.find_lineage(machine, view)
    for disk in record.disks:
        if world.open(folder, disk.head) in world.frozen:
            raise Violation(f"{folder}: {disk.head} is a published layer")
    qemu = world.qemu(folder)
    if qemu is None:
        return
    if qemu.heads != {disk.name: world.open(folder, disk.head) for disk in record.disks}:
        raise Violation(f"QEMU of {machine} writes to other heads than the record names")
    if world.view(qemu.chains, qemu.variables) != world.history[qemu.ram]:
        raise Violation(f"the guest of {machine} does not see what it wrote")
    if view != world.history[qemu.ram]:
        raise Violation(f"the record of {machine} does not name what its guest wrote")
    if qemu.standing:
        raise Violation(f"the guest of {machine} still stands")


def _check_snapshots(world: World, machine: str) -> None:
    """Each published snapshot is whole, and its memory and disks are of one instant."""
    folder = folder_of(machine)
    there = {f"{machine}@{name}" for name in world.files.names(f"{folder}/snapshots")}
    must = {key for key in world.present if key.startswith(f"{machine}@")}
    may = {key for key in world.maybe if key.startswith(f"{machine}@")}
    _compare(must, may, there)
    for key in there:
        _check_instant(world, machine, f"snapshots/{key.partition('@')[2]}")


def _check_instant(world: World, machine: str, path: str) -> None:
    """What the snapshot at ``path`` in the machine's folder holds is of one instant."""
    folder = folder_of(machine)
    manifest = world.manifest(f"{folder}/{path}")
    ram, wanted = world.instants[manifest.instant]
    view = world.view_of(folder, manifest.disks, f"{path}/{VARIABLES}", heads=False)
    if view != wanted:
        raise Violation(f"{folder}/{path}: disks {view} are not those of the instant: {wanted}")
    if manifest.memory != (ram is not None) or (manifest.memory and world.memory_in(f"{folder}/{path}") != ram):
        raise Violation(f"{folder}/{path}: the memory is not that of write {ram}")


def _check_suspended(world: World, machine: str) -> None:
    """What a suspend kept is there only while its guest has not gone on."""
    folder = folder_of(machine)
    _check_instant(world, machine, "suspended")
    record = world.record(folder)
    ram = world.memory_in(f"{folder}/suspended")
    if world.qemu(folder) or world.view_of(folder, record.disks, record.variables, heads=True) != world.history[ram]:
        raise Violation(f"the memory that a suspend of {machine} kept would come back onto newer disks")


def _is_used(world: World, inode: int) -> bool:
    """Whether the file still has a name."""
    return any(node.folder and inode in node.now.values() for node in world.files.nodes)
