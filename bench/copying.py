"""Bulk: 100 MB into a guest and out of it, against a bare virtio-serial port with `dd` at its inner end."""

from __future__ import annotations

import contextlib
import filecmp
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import insula
from bench.hand import HandMachine
from bench.pairs import Pairs, interleave
from bench.world import World, scratch

_BLOCK = 65_536
_BLOCKS = 1600
_SIZE = _BLOCK * _BLOCKS
# In the guest's memory, so that its disk has no say in it; on this side files, since files are what people copy.
_INSIDE = "/tmp/blob"
_DD_IN = f"exec dd if=$(echo /dev/vport*p2) of={_INSIDE} bs={_BLOCK} count={_BLOCKS} iflag=fullblock"
_DD_OUT = f"exec dd if={_INSIDE} of=$(echo /dev/vport*p2) bs={_BLOCK}"


def into(world: World, n: int) -> Pairs:
    with _both(world) as (machine, hand, folder):
        blob = folder / "blob"
        return interleave(lambda: machine.put(blob, _INSIDE), lambda: _send(hand, blob), n)


def out_of(world: World, n: int) -> Pairs:
    with _both(world) as (machine, hand, folder):
        blob = folder / "blob"
        machine.put(blob, _INSIDE)
        _send(hand, blob)
        return interleave(
            lambda: _to_new_file(blob, lambda target: machine.get(_INSIDE, target)),
            lambda: _to_new_file(blob, lambda target: _receive(hand, target)),
            n,
        )


def _to_new_file(blob: Path, receive: Callable[[Path], object]) -> float:
    """Seconds until it is there. A file that was there before would first have to reach the disk, whoever replaces it."""
    target = blob.with_name("received")
    started = time.perf_counter()
    receive(target)
    took = time.perf_counter() - started
    assert filecmp.cmp(blob, target, shallow=False), "not what was sent"
    target.unlink()
    return took


@contextlib.contextmanager
def _both(world: World) -> Iterator[tuple[insula.Machine, HandMachine, Path]]:
    """A machine of ours and one by hand, the same inside, and a folder with 100 MB in ``blob``."""
    image = world.image("tiny")
    with scratch() as folder, scratch() as inside, world.machine("tiny") as name:
        (folder / "blob").write_bytes(os.urandom(_SIZE))
        with HandMachine(inside, image, world.board()) as hand:
            hand.greet()
            yield insula.connect(world.home.root).get(name), hand, folder


def _send(hand: HandMachine, blob: Path) -> None:
    channel = hand.begin("sh", "-c", _DD_IN)
    with blob.open("rb") as stream:
        assert hand.bare.sendfile(stream) == _SIZE
    hand.end(channel)


def _receive(hand: HandMachine, target: Path) -> None:
    channel = hand.begin("sh", "-c", _DD_OUT)
    buffer = memoryview(bytearray(1 << 20))
    left = _SIZE
    with target.open("wb", buffering=0) as stream:
        while left:
            got = hand.bare.recv_into(buffer, min(left, len(buffer)))
            assert got, "QEMU by hand ended"
            stream.write(buffer[:got])
            left -= got
    hand.end(channel)
