"""Snapshots and forks: how long a guest stands still, and how long until a new machine answers."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import time
from collections.abc import Iterator

import insula
from bench.hand_fork import restore as restore_by_hand
from bench.pairs import Pairs, interleave
from bench.world import INSULA, World, run_quietly, scratch
from insula.store.snapshots import read_snapshot

_numbers = itertools.count(1)
_SNAPSHOT = "bench"


def run_warm(world: World, n: int) -> Pairs:
    """`run` of a warm state beside `run --cold`, shell prompt to shell prompt."""
    world.image("debian")
    run_quietly(INSULA, "run", "--quiet", "debian", "--", "true")
    return interleave(
        lambda: run_quietly(INSULA, "run", "--quiet", "debian", "--", "true"),
        lambda: run_quietly(INSULA, "run", "--quiet", "--cold", "debian", "--", "true"),
        n,
        warm=0,
    )


def fork(world: World, n: int) -> Pairs:
    """From the request to the child's first answer, beside the same state loaded by hand."""
    with _parent(world) as name:
        folder = world.home.machine(name)
        snapshot = folder / "snapshots" / _SNAPSHOT
        state = read_snapshot(snapshot)

        def hand() -> float:
            with scratch() as place:
                return restore_by_hand(place, folder, snapshot, state)

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
        snapshot = folder / "snapshots" / _SNAPSHOT
        state = read_snapshot(snapshot)
        machine = insula.connect(world.home.root).get(name)

        def ours() -> float:
            started = time.perf_counter()
            next(one for one in machine.snapshots() if one.name == _SNAPSHOT).restore(keep=False)
            machine.exec("true")
            return time.perf_counter() - started

        def hand() -> float:
            with scratch() as place:
                return restore_by_hand(place, folder, snapshot, state)

        return interleave(ours, hand, n)


def pause(world: World, n: int) -> list[float]:
    """How long a guest that dirties 100 MB a second stands still for a snapshot, by QEMU's own clock, each time."""
    taken = []
    with _parent(world) as name:
        machine = insula.connect(world.home.root).get(name)
        script = "while :; do dd if=/dev/urandom of=/tmp/hot bs=1M count=20 2>/dev/null; usleep 100000; done"
        with subprocess.Popen([INSULA, "exec", name, "--", "sh", "-c", script], stdin=subprocess.DEVNULL) as writer:
            for _ in range(n):
                one = machine.snapshot()
                taken.append(one.show().status.pause)
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
def _parent(world: World) -> Iterator[str]:
    """A running machine with a snapshot."""
    with world.machine("tiny") as name:
        run_quietly(INSULA, "snapshot", "create", "--quiet", f"{name}@{_SNAPSHOT}")
        yield name
