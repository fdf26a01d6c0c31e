"""What holds of a jail is seen in the kernel's words; what lacks is seen, too."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

import insula
from insula.errors import WrongState
from insula.host import cgroup_trees
from insula.isolation.jail import Jail, jail_argv
from insula.isolation.layers import layers_of
from insula.model.security import LayerState
from tests.framework.doors import run_cli
from tests.security.weakened import LAYERS, without

_HELD = {
    "limits", "namespaces", "read-only root", "no network", "no capabilities", "no new privileges", "system calls",
}  # fmt: skip
_HELD_BY_ROOT = _HELD | {"own user"}  # an ordinary user's machines are that user's
# What is seen to be broken when these words are left out. This jail has no list of calls: that is QEMU's.
_SEEN = {
    "none": {"system calls"},
    "network": {"system calls", "namespaces", "no network"},
    "processes": {"system calls", "namespaces"},
    "read-only": {"system calls", "read-only root"},
    "user": {"system calls", "own user"},
    "locks": {"system calls", "limits"},
    "sizes": {"system calls", "limits"},
}


def _broken(layer: str) -> set[str]:
    """The layers seen to be broken around a shell in a jail that lacks ``layer``."""
    words = jail_argv(Jail(root=Path("/"), uid=1_000_012_345, largest=1 << 40), ["/bin/sh", "-c", "echo ready; read x"])
    end = words.index("/bin/sh")
    argv = [*without(words[:end], LAYERS[layer]), *words[end:]]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        pid = child.pid
        while below := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            pid = int(below[-1])
        found = layers_of(pid)
        assert child.stdin is not None
        child.stdin.write(b"\n")
    return {each.name for each in found if each.state is LayerState.BROKEN}


@pytest.mark.root
@pytest.mark.parametrize("layer", _SEEN)
def test_a_layer_that_lacks_is_seen(layer: str) -> None:
    assert _broken(layer) == _SEEN[layer]


def test_a_machine_has_them_all(home: Path, shared: str) -> None:
    done = run_cli(home, "show", "--security", "--json", shared)
    [shown] = json.loads(done.stdout)
    states = {layer["name"]: layer["state"] for layer in shown["layers"]}
    assert {name for name, state in states.items() if state == "broken"} == set()
    assert {name for name, state in states.items() if state == "holds"} >= (_HELD if os.geteuid() else _HELD_BY_ROOT)
    assert states["control group"] == ("holds" if cgroup_trees.usable_trees() else "absent")
    said = run_cli(home, "show", "--security", shared).stdout.decode()
    assert ("QEMU promises no isolation" in said) == (shown["accelerator"] == "tcg")


def test_of_a_stopped_machine_there_is_nothing_to_see(home: Path, tiny: str, name: str) -> None:
    machine = insula.connect(home).create(tiny, name=name, memory="128M", network="none")
    with pytest.raises(WrongState) as error:
        machine.security()
    assert error.value.hint == f"to start it: insula start {name}"
