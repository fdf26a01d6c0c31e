"""What whoever takes the lock next does, step by step: docs/snapshots.md, "Recovery"; and `sweep` of the home."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.loading import fits, heads
from tests.model.steps import folder_of, sweep_unnamed
from tests.model.world import JOURNAL, MANIFEST, Manifest, Qemu, Violation, World


def recover_all(world: World) -> Iterator[str]:
    """Sweep the home, recover every machine. Yields after each step, where it may be killed too."""
    hidden = [name for name in world.files.names("machines") if name.startswith(".")]
    if hidden:
        make_last(world, ["machines"])  # else a power cut may undo the rename of what was removed
    for name in hidden:
        world.end(world.qemu(f"machines/{name}"))
        world.files.remove_tree(f"machines/{name}")
        yield f"{name} swept"
    for machine in world.files.names("machines"):
        yield from recover(world, machine)


def recover(world: World, machine: str) -> Iterator[str]:
    folder = folder_of(machine)
    files = world.files
    world.record(folder)
    if files.exists(f"{folder}/{JOURNAL}"):
        make_last(world, ["machines", folder, *(f"{folder}/{part}" for part in ("disks", "layers", "firmware", "snapshots"))])
        yield "folders fsynced"
    for name in files.names(folder):
        if name.startswith(".") and name.endswith(".new"):
            files.unlink(f"{folder}/{name}")
    yield "temporary files swept"
    yield from _finish_suspend(world, folder)
    yield from _second_qemu(world, folder)
    yield from _first_qemu(world, folder)
    if files.exists(f"{folder}/suspended") and not fits(world, folder):
        yield from _give_up(world, folder)
    for path in (folder, f"{folder}/snapshots"):
        for name in files.names(path):
            if name.startswith((".new-", ".gone-")):
                files.remove_tree(f"{path}/{name}")
                yield f"{name} swept"
    sweep_unnamed(world, folder)
    yield "files nobody names swept"
    files.unlink(f"{folder}/{JOURNAL}")
    yield "journal cleared"


def make_last(world: World, folders: list[str]) -> None:
    """What a dead verb renamed may be seen so and not be so on the disk: what is built upon it would outlive it."""
    for path in folders:
        if (inode := world.files.find(path)) is not None:
            world.files.fsync(inode)


def _finish_suspend(world: World, folder: str) -> Iterator[str]:
    """Its QEMU had ended, or stands for good: what it wrote is what the guest was."""
    files = world.files
    if _journal(world, folder) != ("suspend", "publish"):
        return
    for name in files.names(f"{folder}/snapshots"):
        staged = f"{folder}/snapshots/{name}"
        whole = files.exists(f"{staged}/{MANIFEST}") and isinstance(files.read(f"{staged}/{MANIFEST}").get("json"), Manifest)
        if name.startswith(".new-") and whole:
            world.end(world.qemu(folder))
            yield "standing QEMU ended"
            for disk in world.manifest(staged).disks:
                inode = world.open(folder, disk.layers[-1])
                world.frozen[inode] = dict(files.content(inode))
            files.rename(staged, f"{folder}/suspended")
            yield "suspend published"
            files.fsync(files.inode(folder))
            yield "suspend fsynced"


def _journal(world: World, folder: str) -> object:
    path = f"{folder}/{JOURNAL}"
    return world.files.read(path).get("json") if world.files.exists(path) else None


def _second_qemu(world: World, folder: str) -> Iterator[str]:
    """A restore died: finish it when the record names the new QEMU's heads, else undo it."""
    files = world.files
    for name in files.names(folder):
        if not name.startswith("run-"):
            continue
        qemu = world.qemu(folder, name)
        if qemu is None or not _is_named(world, folder, qemu):
            world.end(qemu)
            files.remove_tree(f"{folder}/{name}")
            yield "second QEMU ended"
            continue
        world.end(world.qemu(folder))
        yield from _give_up(world, folder)
        files.remove_tree(f"{folder}/run")
        yield "old run folder removed"
        files.rename(f"{folder}/{name}", f"{folder}/run")
        yield "run folder taken"


def _first_qemu(world: World, folder: str) -> Iterator[str]:
    files = world.files
    qemu = world.qemu(folder)
    if qemu is None:
        files.remove_tree(f"{folder}/run")
        yield "settled"
        return
    record = world.record(folder)
    if not _is_named(world, folder, qemu):
        for disk in record.disks:
            if qemu.heads[disk.name] not in (world.open(folder, disk.layers[-1]), world.open(folder, disk.head)):
                raise Violation(f"{folder}: QEMU writes to a head of {disk.name} that the record does not name")
        world.switch(qemu, folder, record.disks)
        yield "QEMU switched"
    if qemu.standing:
        yield from _give_up(world, folder)
        qemu.standing = False
        yield "guest goes on"


def _is_named(world: World, folder: str, qemu: Qemu) -> bool:
    """Whether the record names the heads this QEMU writes to."""
    disks = world.record(folder).disks
    return [qemu.heads[disk.name] for disk in disks] == [world.files.find(f"{folder}/{head}") for head in heads(disks)]


def _give_up(world: World, folder: str) -> Iterator[str]:
    """What a suspend kept must not come back: out of sight for good before the guest's first instruction."""
    if world.files.exists(f"{folder}/suspended"):
        world.files.rename(f"{folder}/suspended", f"{folder}/.gone-{world.count()}")
        yield "suspended renamed away"
        world.files.fsync(world.files.inode(folder))
        yield "suspended fsynced away"
