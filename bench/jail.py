"""What the jail costs: the same QEMU, from its start to its monitor's greeting, inside and outside."""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from bench.pairs import Pairs, interleave
from bench.world import World
from insula.engines.qemu.probe import learn, root_plan
from insula.host.native import native_path
from insula.isolation.filters import open_filter
from insula.isolation.jail import Jail, jail_argv
from insula.isolation.roots import jail_root
from insula.isolation.uids import jail_ids

_MEMORY: Final = 512 << 20
_DEVICES: Final = (
    "virtio-serial-pci,max_ports=8",
    "virtio-rng-pci,rng=r",
    "virtio-balloon-pci,free-page-reporting=on",
    "virtio-blk-pci,drive=disk",
    "virtio-net-pci,bus=rp0,netdev=net,romfile=",
    "pvpanic-pci",
    "vmgenid,guid=auto",
)
_LARGEST: Final = 64 << 30


def start(world: World, n: int) -> Pairs:
    """Of a machine with the hardware that machines have, its disk of nothing, that waits before its first instruction."""
    notes, board = learn(world.home, "amd64"), world.board()
    words = [notes.build.binary, "-nodefaults", "-no-user-config", "-display", "none", "-S"]
    words += ["-machine", f"{board.machine},memory-backend=m", "-object", f"memory-backend-memfd,id=m,size={_MEMORY}"]
    words += ["-accel", "tcg,thread=multi,tb-size=128" if board.accelerator == "tcg" else board.accelerator]
    words += ["-cpu", board.cpu, "-smp", "1", "-m", f"{_MEMORY >> 20}M"]
    for index in range(8):
        words += ["-device", f"pcie-root-port,id=rp{index},chassis={index + 1},bus=pcie.0,addr=0x10.{index},multifunction=on"]
    words += [
        "-blockdev",
        "driver=null-co,node-name=disk,size=1073741824",
        "-netdev",
        "user,id=net",
        "-object",
        "rng-builtin,id=r",
    ]
    for device in _DEVICES:
        words += ["-device", device]
    words += ["-chardev", "stdio,id=m", "-mon", "chardev=m,mode=control"]
    uid = jail_ids(str(uuid.uuid4())).machine
    jail = Jail(jail_root(root_plan(notes.build, native_path("insula-keeper"))), uid, largest=_LARGEST)
    return interleave(lambda: _jailed(jail, words), lambda: _greeted(words), n)


def _jailed(jail: Jail, words: Sequence[str]) -> float:
    calls = open_filter("machine")
    if calls is None:
        return _greeted(jail_argv(jail, words))
    try:
        return _greeted(jail_argv(replace(jail, calls=calls), words), [calls])
    finally:
        os.close(calls)


def _greeted(words: Sequence[str], passed: Sequence[int] = ()) -> float:
    """Seconds until QEMU greets."""
    started = time.perf_counter()
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=passed) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        greeting = process.stdout.readline()
        took = time.perf_counter() - started
        process.stdin.write(b'{"execute": "qmp_capabilities"}{"execute": "quit"}')
        process.stdin.close()
        process.stdout.read()
    assert b'"QMP"' in greeting, greeting
    return took
