"""Every fault at every step of a verb, one world each: the exhaustive half of the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from operator import eq, ne

from tests.model.checks import check, check_lasting
from tests.model.filesystem import Chooser
from tests.model.recovery import recover_all
from tests.model.steps import Mutation, Verb
from tests.model.world import Violation, World

Setting = Callable[[], tuple[World, Verb]]  # a world, the same each time, and a verb ready to run in it


def survivors(waiting: int) -> Iterator[tuple[str, Chooser]]:
    """Which waiting changes get to the disk: none, all, each alone, all but each."""
    yield "none", lambda _: False
    if waiting:
        yield "all", lambda _: True
    for one in range(waiting if waiting > 1 else 0):
        yield f"only {one}", partial(eq, one)
        if waiting > 2:
            yield f"all but {one}", partial(ne, one)


def faults(world: World, *, single: bool = True) -> Iterator[tuple[str, World]]:
    """What can happen to a verb at work in ``world``, each in a world of its own. ``single``: lose or keep single changes too."""
    for name, survives in survivors(len(world.files.log) if single else 1):
        lost = world.copy()
        lost.cut_power(survives)
        yield f"power cut, surviving: {name}", lost
    dead = world.copy()
    dead.maker_dies()
    yield "verb killed", dead.copy()
    dead.guests_live()
    yield "verb killed, guests go on", dead.copy()
    if dead.qemus:
        ended = dead.copy()
        ended.qemus = []
        yield "verb killed, guests go on, QEMU killed", ended
    lost = dead.copy()
    lost.cut_power(lambda _: False)
    yield "verb killed, guests go on, power cut", lost
    if world.qemus:
        ended = world.copy()
        ended.qemus = []
        yield "QEMU killed, then the verb", ended


def examine(world: World, deep: bool) -> None:
    """Recover and check. ``deep``: the recovery is also killed, and loses power, after each of its steps."""
    if deep:
        for step, then in _killed_recoveries(world):
            try:
                _recover_and_check(then)
            except Violation as cause:
                raise Violation(f"recovery killed after {step}: {cause}") from cause
    _recover_and_check(world.copy())


def _recover_and_check(world: World) -> None:
    for _ in recover_all(world):
        pass
    once = [dict(node.now) for node in world.files.nodes]
    for _ in recover_all(world):
        pass
    if once != [node.now for node in world.files.nodes]:
        raise Violation("recovery done twice does something the second time")
    check_lasting(world)


def _killed_recoveries(world: World) -> Iterator[tuple[str, World]]:
    stage = world.copy()
    for step in recover_all(stage):
        yield step, stage.copy()
        for index in range(-1, len(stage.files.log)):
            lost = stage.copy()
            lost.cut_power(partial(ne, index) if index >= 0 else lambda _: False)
            yield f"{step}, power cut, {f'all but {index}' if index >= 0 else 'nothing'} surviving", lost


def try_everything(setting: Setting, mutation: Mutation | None = None, deep: bool = False) -> int:
    """Run the verb with every fault after every step; returns the number of worlds seen. Raises Violation, saying where."""
    world, verb = setting()
    steps = mutation(verb.steps) if mutation else verb.steps
    verb.begin()
    seen = _fault_everywhere(world, "begin", deep)
    for step in steps:
        with _place(step.name):
            step.do()
        seen += _fault_everywhere(world, step.name, deep)
    verb.finish()
    with _place("success"):
        check(world)
    seen += _fault_everywhere(world, "success", deep)
    for index in range(1, len(steps)):
        with _place(f"QEMU killed after {steps[index - 1].name}, the verb goes on"):
            seen += _qemu_dies(setting, mutation, index)
    return seen


def _fault_everywhere(world: World, step: str, deep: bool) -> int:
    """Every fault right after a step, and again once guests have lived a little."""
    seen = 0
    for name, other in faults(world):
        with _place(f"{step}: {name}"):
            examine(other, deep)
        seen += 1
    with _place(step):
        world.guests_live()
    for name, other in faults(world, single=deep):
        with _place(f"{step}, guests live: {name}"):
            examine(other, deep=False)
        seen += 1
    return seen


@contextlib.contextmanager
def _place(name: str) -> Iterator[None]:
    """A file that is not there when a step needs it is a violation too."""
    try:
        yield
    except (Violation, FileNotFoundError) as cause:
        raise Violation(f"{name}: {cause}") from cause


def _qemu_dies(setting: Setting, mutation: Mutation | None, after: int) -> int:
    """All QEMUs are killed after this many steps, and the verb goes on until it needs one that was there."""
    world, verb = setting()
    steps = mutation(verb.steps) if mutation else verb.steps
    verb.begin()
    for step in steps[:after]:
        step.do()
        world.guests_live()
    if not world.qemus:
        return 0
    world.qemus = []
    for step in steps[after:]:
        if "keeper" in step.name or "QEMU" in step.name or "guest" in step.name:
            break
        step.do()
    else:
        verb.finish()
    world.maker_dies()
    examine(world, deep=False)
    return 1
