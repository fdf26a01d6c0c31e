"""Proves accelerators: whether a 64-bit guest really runs on one, and comes to a known answer in bounded time.

A ``/dev/kvm`` may open, make a virtual machine and even run firmware to its end, and yet never bring up a kernel. So the
proof is a guest of our own (longmode.S): paging, exceptions, user mode, model-specific registers, SSE and a timer interrupt.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import msgspec

from insula.errors import ChildFailed
from insula.host.digest import digest_of
from insula.host.process import run

_SOURCE: Final = Path(__file__).with_name("longmode.hex")
_ROM_SIZE: Final = 65536
_RESET_VECTOR: Final = 0xFFF0
# jmp far f000:0000, the beginning of the ROM's copy below 1 MiB
_JUMP: Final = bytes.fromhex("ea000000f0")
# The guest writes 0x2a; isa-debug-exit makes 2n+1 of it.
_ANSWER: Final = 2 * 0x2A + 1
_STAGES: Final = (
    "64-bit arithmetic",
    "an invalid opcode",
    "a page fault",
    "SSE",
    "model-specific registers",
    "user mode",
    "the time stamp counter",
    "CPUID",
    "a timer interrupt",
)
# Seconds. The proof takes 0.03 under emulation; an accelerator that hangs costs the whole of it once per boot of the host, while
# emulation cannot fail for want of hardware, so it is given the time a very busy host may need.
PATIENCE: Final = {"kvm": 3.0, "tcg": 30.0}


class Proof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether the guest came to its answer; ``detail`` says what was seen, ``seconds`` how long it took."""

    works: bool
    detail: str
    seconds: float


def payload() -> bytes:
    """The guest: a firmware image of 64 KiB."""
    code = bytes.fromhex(_SOURCE.read_text())
    return (code.ljust(_RESET_VECTOR, b"\0") + _JUMP).ljust(_ROM_SIZE, b"\0")


def payload_digest() -> str:
    """Changes when the proof does, so that what an older one proved is proved again."""
    return digest_of(payload())[:16]


def prove(binary: str, accelerator: str, cpu: str) -> Proof:
    """Run the guest with QEMU's ``accelerator`` and CPU model. Never raises for what does not work: that is the answer."""
    if accelerator == "kvm" and not Path("/dev/kvm").exists():
        return Proof(False, "there is no /dev/kvm", 0.0)
    began = time.monotonic()
    image = os.memfd_create("insula-proof")  # no file that stays should we be killed
    try:
        os.write(image, payload())
        argv = _argv(binary, accelerator, cpu, Path(f"/proc/self/fd/{image}"))
        done = run(argv, timeout=PATIENCE.get(accelerator, 3.0), pass_fds=[image], check=False)
    except ChildFailed:
        seconds = time.monotonic() - began
        return Proof(False, f"a 64-bit guest came to no answer within {PATIENCE.get(accelerator, 3.0):g} s", seconds)
    finally:
        os.close(image)
    return _judge(done.status, done.stderr.decode(errors="replace"), time.monotonic() - began)


def _argv(binary: str, accelerator: str, cpu: str, image: Path) -> list[str]:
    # A guest that hangs would outlive us for ever if we are killed while we wait.
    words = ["setpriv", "--pdeathsig", "KILL", "--", binary, "-nodefaults", "-no-user-config", "-display", "none"]
    words += ["-no-reboot", "-sandbox", "on"]
    words += ["-machine", "q35", "-accel", accelerator, "-cpu", cpu, "-m", "32", "-bios", str(image)]
    return [*words, "-device", "isa-debug-exit,iobase=0x501,iosize=4"]


def _judge(status: int, words: str, seconds: float) -> Proof:
    if status == _ANSWER:
        return Proof(True, "a 64-bit guest came to its answer", seconds)
    stage = (status - 1) // 2
    if status % 2 and 1 <= stage <= len(_STAGES) and not words.strip():
        return Proof(False, f"a 64-bit guest failed at {_STAGES[stage - 1]}", seconds)
    last = words.strip().splitlines()[-1] if words.strip() else f"QEMU ended with status {status}"
    return Proof(False, last, seconds)
