"""How long `run` takes until the machine has its address, beside the same machine without a network card."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Final

import insula
from bench.pairs import Pairs
from bench.world import INSULA, World
from insula.errors import NotFound

KINDS: Final = ("nat", "private")
_REST: Final = 0.5  # seconds in which the kernel sweeps up the networks of whoever ran before
_NETWORK: Final = f"bench-{os.getpid()}"
# The shell alone: until the table of routes has a line of this card. Without a card it is the table's head that is looked for.
_UNTIL: Final = "until while read -r card _; do [ $card = %s ] && break; done </proc/net/route; do sleep 0.01; done; echo here"


def warm(world: World, n: int) -> dict[str, Pairs]:
    """Of a warm state. For each of `KINDS` how long it takes with a card there, and without any, ``n`` times in turns."""
    return _measured(world, n, [])


def cold(world: World, n: int) -> dict[str, Pairs]:
    """Booted."""
    return _measured(world, n, ["--cold"])


def _measured(world: World, n: int, words: list[str]) -> dict[str, Pairs]:
    world.image("tiny")
    with _private(world):
        networks = {"nat": "nat", "private": _NETWORK, "none": "none"}
        seconds: dict[str, list[float]] = {kind: [] for kind in networks}
        for network in networks.values():
            _until_address(network, words)  # the first one keeps a warm state
        for number in range(n):
            kinds = list(networks)
            at = number % len(kinds)
            for kind in [*kinds[at:], *kinds[:at]]:
                time.sleep(_REST)
                seconds[kind].append(_until_address(networks[kind], words))
    return {kind: Pairs(tuple(seconds[kind]), tuple(seconds["none"])) for kind in KINDS}


@contextlib.contextmanager
def _private(world: World) -> Iterator[None]:
    there = insula.connect(world.home.root)
    there.create_network(_NETWORK, "private")
    try:
        yield
    finally:
        with contextlib.suppress(NotFound):
            there.delete_network(_NETWORK)


def _until_address(network: str, words: list[str]) -> float:
    """Seconds until the command inside has said that there is an address. That the machine is deleted then is not counted."""
    script = _UNTIL % ("Iface" if network == "none" else "eth0")
    started = time.perf_counter()
    command = [INSULA, "run", "--quiet", *words, "--network", network, "tiny", "--", "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        answer = process.stdout.readline()
        took = time.perf_counter() - started
    assert (answer, process.returncode) == (b"here\n", 0), answer
    return took
