"""CPUs that a machine has for itself: it takes them before it runs there and has them until it ends; all others make room."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from insula.errors import HostLacks
from insula.host import cgroups
from insula.host.cgroup_trees import usable_trees
from insula.host.cgroups import Group
from insula.host.scheduling import online_cpus
from insula.model.limits import Limits, format_pin, parse_pin
from insula.resources import cores
from insula.resources.groups import group_of
from insula.resources.shares import Setting, settings
from insula.store import names
from insula.store.locks import folder_lock
from insula.store.machines import MachineRecord
from insula.store.names import Home, home_key
from insula.store.spares import all_records


@contextlib.contextmanager
def apart(home: Home, record: MachineRecord, leaf: str = "") -> Iterator[None]:
    """Have the CPUs of its limits for the machine alone when it is started, or held to others, in the context; what it had
    stays its own when that fails. ``leaf``: its group, if that was made just before. Raises HostLacks (``cores_taken``)."""
    with folder_lock(home.host):
        before, wanted = cores.own(home, record.id), record.limits.isolate
        _check(home, record)
        _keep(home, record.id, before, wanted)
        if leaf and not record.limits.cores and cores.taken(home, record.id):  # perhaps only since the group was made
            _make_room(home, leaf)
    try:
        yield
    except BaseException:
        with folder_lock(home.host):
            _keep(home, record.id, wanted, before)
        raise


def leave(home: Home, machine_id: str) -> None:
    """A machine has ended: what it had for itself is everybody's."""
    if cores.own(home, machine_id):
        with folder_lock(home.host):
            _keep(home, machine_id, cores.own(home, machine_id), ())


def sweep(home: Home) -> None:
    """Give back what machines had that ended without a word."""
    for machine_id in cores.stale(home):
        leave(home, machine_id)


def settings_for(home: Home, machine_id: str, group: Group, limits: Limits, memory: int) -> list[Setting]:
    """What is to be written for a machine with so many bytes of memory, in this group."""
    return settings(limits, memory, group.versions(), _shared(home, machine_id, group))


def _shared(home: Home, machine_id: str, group: Group) -> str:
    """The CPUs of a machine that has no limits: those of the group above that are nobody's own, as a cpuset spells them."""
    there = group.read_above("cpuset", "cpuset.cpus" if group.versions().get("cpuset") == 1 else "cpuset.cpus.effective")
    if taken := cores.taken(home, machine_id):
        there = format_pin(tuple(cpu for cpu in parse_pin(there) or online_cpus() if cpu not in taken))
    return there or format_pin(online_cpus())


def _keep(home: Home, machine_id: str, before: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Note what the machine has for itself, and let all others run where they now may.

    All groups are gone through, not all machines: one that is being made has no name yet, but a group. Where nobody knows its
    limits it runs on shared CPUs if it has what all who do had until now.
    """
    if before == wanted:
        return
    former = {leaf: _shared(home, _id_of(leaf), group) for leaf, group in _groups(home).items()}
    cores.keep(home, machine_id, wanted)
    limits = {record.id: record.limits for _, record in _others(home, machine_id)}
    for leaf, group in _groups(home).items():
        known = limits.get(_id_of(leaf))
        shares = not known.cores if known is not None else _cpus_of(group) == parse_pin(former.get(leaf, ""))
        if _id_of(leaf) != machine_id and shares:
            _make_room(home, leaf)


def _make_room(home: Home, leaf: str) -> None:
    group = _groups(home).get(leaf)
    if group is not None and group.where("cpuset") is not None:
        with contextlib.suppress(OSError):  # it may be going just now
            group.write("cpuset", "cpuset.cpus", _shared(home, _id_of(leaf), group))


def _groups(home: Home) -> dict[str, Group]:
    """All groups of this home, by their names."""
    parent, trees = home_key(home.root), usable_trees()
    found = {leaf: cgroups.find(parent, leaf, trees) for leaf in cgroups.leaves(parent, trees)}
    return {leaf: group for leaf, group in found.items() if group is not None}


def _id_of(leaf: str) -> str:
    return leaf.partition(".")[0]


def _cpus_of(group: Group) -> tuple[int, ...]:
    return parse_pin((group.read("cpuset", "cpuset.cpus") or "").strip())


def _check(home: Home, record: MachineRecord) -> None:
    """Whether the machine can have the CPUs of its limits beside those that run."""
    taken, mine, isolate = cores.taken(home, record.id), record.limits.cores, record.limits.isolate
    if clash := [cpu for cpu in mine if cpu in taken]:
        whose = _named(home, taken[clash[0]])
        raise _refusal(f"'{whose}' has CPU {format_pin(tuple(clash))} of this host for itself")
    if not set(online_cpus()) - set(taken) - set(isolate):
        raise _refusal("no CPU of this host would be left for others")
    for folder, other in _others(home, record.id) if isolate else ():
        if (clash := [cpu for cpu in other.limits.cores if cpu in isolate]) and group_of(home, folder / names.RUN) is not None:
            raise _refusal(f"'{folder.name}' runs pinned to CPU {format_pin(tuple(clash))} of this host")


def _refusal(why: str) -> HostLacks:
    return HostLacks(why, code="cores_taken", hint="choose other CPUs, or stop or limit the other machine first")


def _named(home: Home, machine_id: str) -> str:
    return next((folder.name for folder, record in _others(home, "") if record.id == machine_id), machine_id)


def _others(home: Home, machine_id: str) -> Iterator[tuple[Path, MachineRecord]]:
    """All machines and spares there are but this one."""
    return ((folder, record) for folder, record in all_records(home) if record.id != machine_id)
