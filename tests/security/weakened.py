"""The probe in a jail that lacks a layer: `python -m tests.security.weakened HOME LAYER`; prints what is open, a line each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from insula.client.local import LocalClient
from insula.engines.qemu import launch
from insula.isolation.jail import Jail, jail_argv
from insula.model.requests import ProbeJail
from insula.operations import probe
from insula.resources.groups import NOWHERE

# What is left out of the words that make the jail. A word that ends in `+` goes with the one after it, one in `=` with its value.
LAYERS = {
    "none": (),
    "calls": ("--seccomp+",),
    "network": ("--unshare-net",),
    "processes": ("--unshare-pid", "--as-pid-1"),
    "namespaces": ("--seccomp+", "--disable-userns"),
    "read-only": ("--ro-bind",),
    "user": ("--user=", "--groups="),
    "locks": ("--memlock=",),
    "sizes": ("--fsize=",),
    "group": (),  # none of the words: the group in which they are spoken
}


def without(words: Sequence[str], missing: Sequence[str]) -> list[str]:
    left, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif f"{word}+" in missing:
            skip = True
        elif word == "--ro-bind" and word in missing:
            left.append("--bind")
        elif word not in missing and f"{word.partition('=')[0]}=" not in missing:
            left.append(word)
    return left


def main() -> None:
    home, layer = Path(sys.argv[1]), sys.argv[2]

    def weaker(jail: Jail, command: Sequence[str]) -> list[str]:
        words = jail_argv(jail, command)
        end = words.index("--as-pid-1") + 1
        weakened = without(words[:end], LAYERS[layer])
        assert not LAYERS[layer] or weakened != words[:end]
        return weakened + words[end:]

    vars(launch)["jail_argv"] = weaker
    if layer == "group":
        vars(probe)["_placed"] = lambda _context: nullcontext(NOWHERE)
    for attempt in LocalClient(home).do(ProbeJail()):
        if attempt.result != "blocked":
            print(attempt.name)


if __name__ == "__main__":
    main()
