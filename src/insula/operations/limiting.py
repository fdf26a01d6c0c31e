"""Holding a machine to its limits: where its processes are put before they start, and what is changed while they run.

What the kernel's control groups hold is arranged before QEMU starts; a disk's throttle, and what threads are told where there is
no group, right after, before the guest has got far.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from insula.errors import HostLacks
from insula.host.cgroup_trees import usable_trees
from insula.host.cgroups import warmed
from insula.host.scheduling import be_nice, be_nice_session, bind, has_autogroup, online_cpus
from insula.model.limits import Hold, Limits, check_host, check_limits
from insula.operations.apart import apart, settings_for
from insula.operations.context import Context
from insula.resources.groups import NOWHERE, Place, group_of, leaf_of, mended, new_place, write_all
from insula.resources.shares import Setting, hold_of, nice_of, wished
from insula.resources.throttles import throttle_limits
from insula.store import names
from insula.store.machines import MachineRecord
from insula.store.names import Home

if TYPE_CHECKING:
    from insula.host.cgroups import Group

_DISK: Final = frozenset({"disk_iops", "disk_iops_burst", "disk_rate", "disk_rate_burst", "burst_time"})
_STRAYED: Final = "somebody removed its control group or took it out; the next insula limit puts it back"
_NO_CPU: Final = "run Insula as root, or where it may make groups: systemd-run --user --scope -p Delegate=yes -- $SHELL"


def check(limits: Limits) -> None:
    """Before anything is done: whether this host can hold a machine to ``limits``. Raises UsageError (``bad_limit``,
    ``contradictory_limits``, ``beyond_host``), HostLacks (``no_group``)."""
    check_host(check_limits(limits), online_cpus())
    if not wished(limits):
        return
    for hold in _possible(limits):
        if not hold.holds:
            raise HostLacks(f"nobody would hold it to --{hold.limit} {hold.asked}: {hold.by}", code="no_group", hint=_NO_CPU)


def _possible(limits: Limits) -> list[Hold]:
    """How a machine that is yet to be started would be held to ``limits``."""
    versions = {name: tree.version for tree in usable_trees() for name in tree.controllers}
    return _holds(limits, versions)


def _holds(limits: Limits, versions: dict[str, int]) -> list[Hold]:
    root, autogroup = os.geteuid() == 0, has_autogroup()
    return [hold_of(field, limits, versions, root=root, autogroup=autogroup) for field in _told(limits)]


def _told(limits: Limits) -> list[str]:
    """Shares are told of always: without any, all machines have the same."""
    return ["cpu_shares", *(field for field in wished(limits) if field != "cpu_shares")]


@contextlib.contextmanager
def placed(context: Context, record: MachineRecord) -> Iterator[Place]:
    """Where the processes of a QEMU that is about to start are to be. Raises HostLacks (``no_group``, ``limit_refused``)."""
    if not context.engine.features.groups:
        yield NOWHERE
        return
    home = context.home
    with (
        new_place(home, record.id, lambda group: _settings(home, group, record)) as place,
        apart(home, record, place.leaf),
        warmed(),
    ):
        yield place


def _settings(home: Home, group: Group, record: MachineRecord) -> list[Setting]:
    return settings_for(home, record.id, group, record.limits, record.hardware.total)


def hold_back(context: Context, folder: Path, record: MachineRecord, run: str = names.RUN) -> None:
    """What is left to do for a QEMU that has just been started in its group. Raises as the engine does, HostLacks."""
    wishes = wished(record.limits)
    if not wishes:
        return
    if _DISK & set(wishes):
        _throttle(context, folder / run, record)
    group = group_of(context.home, folder / run)
    with contextlib.suppress(HostLacks):  # on another host than it was asked on; `show` says that it is not held
        _tell_threads(folder, record, group.versions() if group else {}, Limits())


def uphold(context: Context, folder: Path, record: MachineRecord, former: MachineRecord | None = None) -> None:
    """Hold a running machine to what ``record`` says of limits, shape and cards; ``former`` is what it is held to now, if that is
    known. When it cannot be held to one of them it is held to none of them, but as before.

    Its control group is made anew if somebody removed it. Raises HostLacks (``no_group``, ``limit_refused``), and as the engine.
    """
    from insula.operations.cabling import change_cards

    run, pids = folder / names.RUN, _pids(folder, record)
    before = former.limits if former else None
    with apart(context.home, record), contextlib.ExitStack() as undo:
        with mended(context.home, run, pids) as group:
            versions = group.versions() if group else {}
            if group is not None:
                if former is not None:
                    undo.callback(_quietly, lambda: write_all(group, _settings(context.home, group, former)))
                write_all(group, _settings(context.home, group, record))
        if former is not None:
            undo.callback(_quietly, lambda: _tell_threads(folder, former, versions, record.limits))
        _tell_threads(folder, record, versions, before)
        if before is None or throttle_limits(before) != throttle_limits(record.limits):
            _throttle(context, run, record)
            if former is not None:
                undo.callback(_quietly, lambda: _throttle(context, run, former))
        if before is None or before.net != record.limits.net:
            change_cards(context, folder.name, record)
        undo.pop_all()


def _quietly(work: Callable[[], None]) -> None:
    with contextlib.suppress(Exception):
        work()


def _pids(folder: Path, record: MachineRecord) -> Sequence[int]:
    from insula.isolation.inhabitants import inhabitants

    return list(inhabitants(folder, record.id))


def _throttle(context: Context, run: Path, record: MachineRecord) -> None:
    disks = [f"disk{index}" for index in range(len(record.disks))]
    context.engine.throttle(run, disks, throttle_limits(record.limits))


def _tell_threads(folder: Path, record: MachineRecord, versions: dict[str, int], before: Limits | None) -> None:
    """Niceness and affinity, where no group says them."""
    limits = record.limits
    try:
        if "cpuset" not in versions and (before is None or before.cores != limits.cores):
            bind(_pids(folder, record), limits.cores or online_cpus())
        if "cpu" not in versions and (before is None or before.cpu_shares != limits.cpu_shares):
            _be_nice(folder, record)
    except OSError as cause:
        raise HostLacks(f"its threads cannot be told: {cause.strerror}", code="limit_refused", hint=_NO_CPU) from cause


def _be_nice(folder: Path, record: MachineRecord) -> None:
    from insula.isolation.inhabitants import porters

    niceness = nice_of(record.limits.cpu_shares)
    # Sessions are weighed in the kernel's root group only: in another, as all in a container are, threads are. In a session all
    # have the same niceness, which changes nothing there. But only root can make less nice again what was made nicer.
    if not has_autogroup() or os.geteuid() == 0:
        be_nice(_pids(folder, record), niceness)
    for porter in porters(record.id) if has_autogroup() else ():
        be_nice_session(porter, niceness)


def holds(context: Context, folder: Path, record: MachineRecord) -> list[Hold]:
    """How a running machine is held to its limits, as the kernel tells it now."""
    run = folder / names.RUN
    group = group_of(context.home, run)
    if not leaf_of(run):  # it was given none, so somebody else holds
        return _holds(record.limits, {})
    found = _possible(record.limits)
    if group is None or not all(there >= {*_pids(folder, record)} for there in group.members().values()):
        return [Hold(hold.limit, hold.asked, False, _STRAYED) if "group" in hold.by else hold for hold in found]
    return [_as_seen(hold, context.home, group, record) for hold in found]


def _as_seen(hold: Hold, home: Home, group: Group, record: MachineRecord) -> Hold:
    """What somebody else wrote into the group since is told."""
    field = hold.limit.replace("-", "_")
    for setting in _settings(home, group, record):
        if setting.wish == field:
            seen = (group.read(setting.controller, setting.file) or "").strip().removeprefix("default ")
            if seen != setting.value.strip():
                return Hold(hold.limit, hold.asked, False, f"somebody set {setting.file} to {seen}" if seen else _STRAYED)
    return hold
