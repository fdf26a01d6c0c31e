"""CPUs that a machine has for itself: it takes them before it runs there and has them until it ends; all others make room."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from insula.errors import HostLacks, InsulaError
from insula.host.cgroups import Group
from insula.host.scheduling import online_cpus
from insula.model.limits import Limits, format_pin, parse_pin
from insula.resources import cores
from insula.resources.groups import group_of, write_all
from insula.resources.shares import Setting, settings
from insula.store import names
from insula.store.locks import folder_lock
from insula.store.machines import MachineRecord
from insula.store.names import Home
from insula.store.spares import all_records


@contextlib.contextmanager
def apart(home: Home, record: MachineRecord) -> Iterator[None]:
    """Have the CPUs of its limits for the machine alone when it is started, or held to others, in the context; what it had
    stays its own when that fails. Raises HostLacks (``cores_taken``)."""
    with folder_lock(home.host):
        before, wanted = cores.own(home, record.id), record.limits.isolate
        _check(home, record)
        _keep(home, record.id, before, wanted)
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
    versions = group.versions()
    there = group.read_above("cpuset", "cpuset.cpus" if versions.get("cpuset") == 1 else "cpuset.cpus.effective")
    if taken := cores.taken(home, machine_id):
        there = format_pin(tuple(cpu for cpu in parse_pin(there) or online_cpus() if cpu not in taken))
    return settings(limits, memory, versions, there or format_pin(online_cpus()))


def _keep(home: Home, machine_id: str, before: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if before != wanted:
        cores.keep(home, machine_id, wanted)
        for folder, record in _others(home, machine_id):
            group = group_of(home, folder / names.RUN)
            if group is not None and not record.limits.cores:
                every = settings_for(home, record.id, group, record.limits, record.hardware.total)
                with contextlib.suppress(InsulaError, OSError):  # it may be ending just now
                    write_all(group, [setting for setting in every if setting.controller == "cpuset"])


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
