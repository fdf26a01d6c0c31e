"""Cold boots: from nothing but the image to the answer of the first command inside."""

from __future__ import annotations

import subprocess
import time

from bench.hand import HandMachine
from bench.pairs import Pairs, interleave
from bench.world import INSULA, World, scratch
from insula.images.record import Image
from insula.operations.identify import READY_HOOK
from insula.store.machines import BoardRecord

_COMMAND = ("echo", "here")


def tiny(world: World, n: int) -> Pairs:
    return _boots(world, "tiny", n, warm=1)


def debian(world: World, n: int) -> Pairs:
    return _boots(world, "debian", n, warm=0)  # each takes most of a minute


def _boots(world: World, name: str, n: int, warm: int) -> Pairs:
    image, board = world.image(name), world.board()
    return interleave(lambda: ours(name), lambda: by_hand(image, board), n, warm)


def ours(image: str) -> float:
    """Seconds until the command's output is here. What `run` does afterwards (delete the machine) is not counted."""
    started = time.perf_counter()
    words = [INSULA, "run", "--quiet", "--cold", image, "--", *_COMMAND]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        answer = process.stdout.readline()
        took = time.perf_counter() - started
    assert (answer, process.returncode) == (b"here\n", 0), answer
    return took


def by_hand(image: Image, board: BoardRecord) -> float:
    """Seconds until the command's output is here; an image that says when it is ready is asked, as `run` does."""
    with scratch() as folder:
        started = time.perf_counter()
        with HandMachine(folder, image, board) as machine:
            machine.greet()
            if image.boot == "disk":
                machine.wait(READY_HOOK)
            channel = machine.begin(*_COMMAND)
            answer = machine.next_frame(channel)[0].payload
            took = time.perf_counter() - started
    assert answer == b"here\n", answer
    return took
