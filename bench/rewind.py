"""Snapshots and forks: how long a guest stands still, and how long until a new machine answers."""

from __future__ import annotations

import contextlib
import itertools
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator

import insula
from bench import libvirt
from bench.hand_fork import restore as restore_by_hand
from bench.hand_fork import state_of
from bench.pairs import Pairs, interleave
from bench.world import INSULA, World, run_quietly, scratch
from insula.store import names

_numbers = itertools.count(1)
_SNAPSHOT = "bench"
_CONTAINER = "localhost/insula-bench"


def run_warm(world: World, n: int) -> Pairs:
    """`run` of a warm state beside `run --cold`, shell prompt to shell prompt."""
    world.image("debian")
    _run_debian(world)  # the state is made
    return interleave(lambda: _run_debian(world), lambda: _run_debian(world, "--cold"), n, warm=0)


def run_beside_podman(world: World, n: int) -> Pairs | None:
    """`run` of a warm state beside a container of a Debian image, shell prompt to shell prompt; None where podman runs none."""
    container = _container() if shutil.which("podman") else None
    if container is None:
        return None
    world.image("debian")
    return interleave(lambda: _run_debian(world), lambda: run_quietly(*container, "true"), n)


def run_beside_podman_with_spare(world: World, n: int) -> Pairs | None:
    """The same with a spare, which is made anew before the next run."""
    container = _container() if shutil.which("podman") else None
    if container is None:
        return None
    world.image("debian")

    def ours() -> float:
        run_quietly(INSULA, "spare", "set", "--quiet", "1", "debian")
        return _run_debian(world, others=True)

    try:
        return interleave(ours, lambda: run_quietly(*container, "true"), n)
    finally:
        run_quietly(INSULA, "spare", "set", "--quiet", "0", "debian")


def _run_debian(world: World, *options: str, others: bool = False) -> float:
    """Seconds from shell prompt to shell prompt. What is done behind it has ended on return, so that it is in nobody's way; with
    ``others`` their cards keep the fabric, which is not waited for."""
    started = time.perf_counter()
    run_quietly(INSULA, "run", "--quiet", *options, "debian", "--", "true")
    took = time.perf_counter() - started
    while not others and (world.home.fabric / names.FABRIC_STATE).exists():
        time.sleep(0.02)
    return took


def _container() -> tuple[str, ...] | None:
    """The first command that runs a container here: podman's own defaults, then what asks less of the host."""
    if subprocess.run(["podman", "image", "exists", _CONTAINER], check=False).returncode:
        _make_container()
    small = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")
    for command in (("podman", "run"), ("podman", "run", *small), ("podman", "--runtime", "runc", "run", *small)):
        words = (*command, "--rm", _CONTAINER)
        if subprocess.run([*words, "true"], check=False, capture_output=True).returncode == 0:
            return words
    return None


def _make_container() -> None:
    """From the signed archive too, with nothing in it that Debian does not call essential."""
    words = ["mmdebstrap", "--quiet", "--variant=minbase", platform.freedesktop_os_release()["VERSION_CODENAME"], "-"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tree:
        subprocess.run(["podman", "import", "--quiet", "-", _CONTAINER], stdin=tree.stdout, stdout=subprocess.DEVNULL, check=True)
    assert tree.returncode == 0, "mmdebstrap failed"


def fork(world: World, n: int) -> Pairs:
    """From the request to the child's first answer, beside the same state loaded by hand."""
    with _parent(world) as name:
        folder = world.home.machine(name)
        state = state_of(folder, _SNAPSHOT)

        def hand() -> float:
            with scratch() as place:
                return restore_by_hand(place, folder, state)

        return interleave(lambda: _answer(world, f"{name}@{_SNAPSHOT}"), hand, n)


def fork_spare(world: World, n: int) -> Pairs:
    """The same with a spare, beside the same without."""
    with _parent(world) as name:
        origin = f"{name}@{_SNAPSHOT}"

        def spare() -> float:
            run_quietly(INSULA, "spare", "set", "--quiet", "1", origin)
            took = _answer(world, origin)
            run_quietly(INSULA, "spare", "set", "--quiet", "0", origin)
            return took

        return interleave(spare, lambda: _answer(world, origin), n)


def restore(world: World, n: int) -> Pairs:
    """Back in place until the guest answers, beside the same state loaded by hand."""
    with _parent(world) as name:
        folder = world.home.machine(name)
        state = state_of(folder, _SNAPSHOT)

        def hand() -> float:
            with scratch() as place:
                return restore_by_hand(place, folder, state)

        return interleave(lambda: _back(world, name), hand, n)


def restore_beside_libvirt(world: World, n: int) -> Pairs:
    """Back in place until the guest answers, beside a saved machine that libvirt restores."""
    with _parent(world, "--network", "none") as name, scratch() as place, libvirt.Virsh(place) as virsh:
        saved, disk = place / "saved", place / "saved.qcow2"
        libvirt.Domain(virsh, "create", libvirt.prepare(place, world.image("tiny"), world.board(), "512M")).save(saved)
        (place / "disk.qcow2").rename(disk)

        def theirs() -> float:
            started = time.perf_counter()
            libvirt.make_disk(place, disk)
            with libvirt.Domain(virsh, "restore", saved):
                return time.perf_counter() - started

        return interleave(lambda: _back(world, name), theirs, n)


def _back(world: World, name: str) -> float:
    """Seconds from the request, in a process that runs, for a restore in place until the guest answers."""
    machine = insula.connect(world.home.root).get(name)
    started = time.perf_counter()
    next(one for one in machine.snapshots() if one.name == _SNAPSHOT).restore(keep=False)
    machine.exec("true")
    return time.perf_counter() - started


def pause(world: World, n: int) -> list[float]:
    """How long a guest that dirties 100 MB a second stands still for a snapshot, by QEMU's own clock, each time."""
    taken = []
    with _parent(world) as name:
        machine = insula.connect(world.home.root).get(name)
        script = "while :; do dd if=/dev/urandom of=/tmp/hot bs=1M count=20 2>/dev/null; usleep 100000; done"
        with subprocess.Popen([INSULA, "exec", name, "--", "sh", "-c", script], stdin=subprocess.DEVNULL) as writer:
            for _ in range(n):
                one = machine.snapshot()
                taken.append(one.show().pause)
                one.delete()
            writer.kill()
    return taken


def _answer(world: World, origin: str) -> float:
    """Seconds from the request for a fork, in a process that runs, to the end of its first program."""
    name = f"bench-fork-{next(_numbers)}"
    machine, _, snapshot = origin.partition("@")
    parent = insula.connect(world.home.root).get(machine)
    state = next(one for one in parent.snapshots() if one.name == snapshot)
    started = time.perf_counter()
    (child,) = state.fork(1, name=name)
    child.exec("true")
    took = time.perf_counter() - started
    child.delete(force=True)
    return took


@contextlib.contextmanager
def _parent(world: World, *options: str) -> Iterator[str]:
    """A running machine with a snapshot."""
    with world.machine("tiny", *options) as name:
        run_quietly(INSULA, "snapshot", "create", "--quiet", f"{name}@{_SNAPSHOT}")
        yield name
