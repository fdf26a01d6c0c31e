"""A machine's console, as somebody attached to it sees it."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Callable


def wait_said(console: subprocess.Popen[bytes], wanted: bytes, provoke: Callable[[], object]) -> None:
    """Until the console says ``wanted``, which ``provoke`` brings about.

    It is called again while nothing is said: a console shows what comes after somebody attached, and a serial port
    forgets what was typed before the guest's kernel opened it.
    """
    assert console.stdout is not None
    output = console.stdout.fileno()
    seen = b""
    while wanted not in seen:
        provoke()
        while wanted not in seen and select.select([output], [], [], 1)[0]:
            came = os.read(output, 65536)
            assert came, f"the console ended after {seen!r}"
            seen += came
