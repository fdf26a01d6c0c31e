"""Which layers of its jail hold for a running machine: looked at from outside, in the kernel's own words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from insula.errors import MachineEnded
from insula.host.cgroups import Group
from insula.isolation.inhabitants import inhabitants
from insula.isolation.layers import layers_of
from insula.model.lifecycle import check_transition
from insula.model.requests import ShowSecurity
from insula.model.security import Layer, LayerState, Security
from insula.operations.context import Context
from insula.operations.look import record_of
from insula.operations.observe import observe
from insula.operations.operation import Operation
from insula.resources.groups import group_of, leaf_of
from insula.store import names

# QEMU's documentation, "Security": the virtualization use case is KVM (or another hypervisor) with a board made for it.
_PROMISES: Final = {
    "kvm": "QEMU means to contain its guest; the jail is the second wall",
    "hvf": "QEMU means to contain its guest; the jail is the second wall",
}
_NO_PROMISE: Final = "emulated: QEMU promises no isolation, the jail is the wall"


def show_security(context: Context, request: ShowSecurity, operation: Operation) -> Security:
    """The layers around the machine's QEMU.

    Raises NotFound, DamagedRecord, WrongState, MachineEnded, HostLacks (``unseen``).
    """
    del operation
    folder, record = record_of(context, request.name)
    check_transition(request.name, "show security", observe(folder)[0].state)
    found = inhabitants(folder, record.id)
    if not found:
        raise MachineEnded(f"{request.name} ended while it was looked at", code="not_running", hint="see why: insula list")
    accelerator = record.board.accelerator if record.board else ""
    # By its name, which it may have changed; pids alone may have begun anew between the keeper's and its child's.
    qemu = next((pid for pid, untrusted_name in found.items() if untrusted_name.startswith("qemu")), max(found))
    layers = _as_allowed(folder, _with_group(context, folder, qemu, layers_of(qemu)))
    return Security(request.name, accelerator, _PROMISES.get(accelerator, _NO_PROMISE), layers)


def _as_allowed(folder: Path, layers: list[Layer]) -> list[Layer]:
    """The same, where those that the machine has leave to run without are not there, rather than broken."""
    from insula.isolation.bare import not_to_be_had, noted_way

    way = noted_way(folder / names.RUN)
    missed = not_to_be_had(way) if way is not None else frozenset[str]()
    return [
        Layer(layer.name, LayerState.ABSENT, f"{layer.detail} (--insecure)")
        if layer.state is LayerState.BROKEN and layer.name in missed
        else layer
        for layer in layers
    ]


def _with_group(context: Context, folder: Path, qemu: int, layers: list[Layer]) -> list[Layer]:
    """The same with its control group, which stands around the namespaces."""
    place = next(index for index, layer in enumerate(layers) if layer.name == "namespaces")
    return [*layers[:place], _group(context, folder, qemu), *layers[place:]]


def _group(context: Context, folder: Path, qemu: int) -> Layer:
    name, run = "control group", folder / names.RUN
    group = group_of(context.home, run)
    if not leaf_of(run):
        return Layer(name, LayerState.ABSENT, "this user can make none here (insula doctor)")
    if group is None or not all(qemu in there for there in group.members().values()):
        return Layer(name, LayerState.BROKEN, "somebody removed it, or took it out; the next insula limit puts it back")
    most = [f"{bound.strip()} {words}" for words, bound in _bounds(group) if bound is not None]
    return Layer(name, LayerState.HOLDS, f"{', '.join(sorted(group.versions()))}; at most {' and '.join(most)}")


def _bounds(group: Group) -> Iterator[tuple[str, str | None]]:
    yield "processes", group.read("pids", "pids.max")
    file = "memory.limit_in_bytes" if group.versions().get("memory") == 1 else "memory.max"
    yield "bytes of memory", group.read("memory", file)
