"""Samples of the machines that run: what the kernel and their QEMUs count, read together.

Looked at again and again a machine costs some tenths of a millisecond: its processes are looked for once, and its QEMU is asked
one question. Nothing is locked and nothing changed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from insula.errors import InsulaError
from insula.host.counters import Memory, Process, Thread, group_mount, group_pressure, open_processes
from insula.isolation.inhabitants import all_inhabitants
from insula.model.status import State
from insula.operations.context import Context
from insula.operations.observe import observe_state
from insula.resources.metrics import CardCounts, DiskCounts, Sample
from insula.store import names
from insula.store.machines import MachineRecord, machine_folder, machine_names, read_machine


class Seen(msgspec.Struct, frozen=True):
    """A machine that runs, and how it was."""

    folder: Path
    record: MachineRecord
    state: State
    sample: Sample


class _Known(msgspec.Struct):
    """What need not be found out again: the record while its file is the same, the processes while they live."""

    stamp: tuple[int, int]
    record: MachineRecord
    processes: list[Process] = msgspec.field(default_factory=list)


class Sampler:
    """A context manager. ``only``: the names of the machines meant, empty for all. Raises NotFound when one is not there."""

    def __init__(self, context: Context, only: Sequence[str] = ()) -> None:
        self._context = context
        self._only = [machine_folder(context.home, name) for name in only]
        self._known: dict[Path, _Known] = {}
        self._groups = group_mount()

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._keep(())

    def sample(self, *, thorough: bool = False) -> dict[str, Seen]:
        """All machines that run, by name. ``thorough``: with memory divided among those who share it, which takes longer."""
        home = self._context.home
        folders = self._only or [home.machine(name) for name in machine_names(home)]
        states = {folder: state for folder in folders if (state := observe_state(folder)[0]).has_process}
        self._keep(states)
        self._learn(states)
        cards = _cards(self._context)
        runs = {folder.name: folder / names.RUN for folder in states if folder in self._known}
        disks = self._context.engine.disk_counts(runs)
        groups = self._own_groups()
        found = {}
        for folder, state in states.items():
            if (known := self._known.get(folder)) is None:
                continue
            try:
                group = groups.get(folder)
                sample = _sample(known, disks.get(folder.name), cards.get(known.record.id, {}), group, thorough=thorough)
            except ProcessLookupError:  # it has ended, or has other processes now: next time
                _close(self._known.pop(folder).processes)
                continue
            found[folder.name] = Seen(folder, known.record, state, sample)
        return found

    def _keep(self, folders: Iterable[Path]) -> None:
        """Forget all others."""
        for folder in set(self._known).difference(folders):
            _close(self._known.pop(folder).processes)

    def _learn(self, folders: Iterable[Path]) -> None:
        for folder in folders:
            with contextlib.suppress(InsulaError, OSError):
                file = (folder / names.RECORD).stat()
                stamp = (file.st_ino, file.st_mtime_ns)
                known = self._known.get(folder)
                if known is None or known.stamp != stamp:
                    processes = known.processes if known is not None else []
                    self._known[folder] = _Known(stamp, read_machine(folder), processes)
        missing = {known.record.id: known for known in self._known.values() if not known.processes}
        for machine_id, pids in all_inhabitants(missing).items() if missing else ():
            missing[machine_id].processes = open_processes(sorted(pids))

    def _own_groups(self) -> dict[Path, Path]:
        """Of machines that have a control group of their own, its folder."""
        if self._groups is None:
            return {}
        found: dict[Path, str] = {}
        for folder, known in self._known.items():
            with contextlib.suppress(ProcessLookupError, OSError):
                found[folder] = known.processes[-1].group() if known.processes else ""
        with Process(os.getpid()) as ours:
            shared = {"", ours.group()}
        paths = list(found.values())
        return {folder: self._groups / path for folder, path in found.items() if path not in shared and paths.count(path) == 1}


def _sample(
    known: _Known, disk: DiskCounts | None, cards: Mapping[str, CardCounts], group: Path | None, *, thorough: bool
) -> Sample:
    """Raises ProcessLookupError when it has ended."""
    if not known.processes:
        raise ProcessLookupError("none was found")
    threads: dict[int, Thread] = {}
    cpu = proportional = 0
    memory = Memory(0, 0)
    for process in known.processes:
        threads |= process.threads()
        cpu += process.cpu_time()
        memory = Memory(*(sum(pair) for pair in zip(memory, process.memory(), strict=True)))
        proportional += process.proportional() if thorough else 0
    return Sample(
        at=time.monotonic(),
        life=known.processes[-1].pid,
        cpu_ns=cpu,
        threads=threads,
        own=memory.own,
        resident=memory.resident,
        proportional=proportional,
        disk=disk,
        cards=cards,
        pressure=group_pressure(group) if group is not None else {},
        cores=known.processes[-1].cores(),
    )


def _cards(context: Context) -> dict[str, dict[str, CardCounts]]:
    """By the machines' ids. No cost where no network is in use."""
    if not context.home.fabric.exists():
        return {}
    from insula.networks.counts import card_counts

    with contextlib.suppress(InsulaError, OSError):
        return card_counts(context.home)
    return {}


def _close(processes: Iterable[Process]) -> None:
    for process in processes:
        process.close()
