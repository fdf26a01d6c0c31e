"""The QEMU engine: what engines/base.py promises, kept by the modules beside this one."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from insula.engines.base import (
    Features,
    GuestMemory,
    Hardware,
    LaunchPlan,
    MergedLayer,
    Method,
    NewHead,
    NicPlan,
    Saved,
    SaveOrder,
)
from insula.errors import MachineEnded
from insula.model.shape import Dimm
from insula.resources.metrics import DiskCounts
from insula.store import names
from insula.store.machines import BoardRecord
from insula.store.names import Home

if TYPE_CHECKING:
    from insula.engines.qemu.probe import Build, Notes

FEATURES: Final = Features(
    direct_boot=True,
    uefi=True,
    pause=True,
    power_button=True,
    save=True,
    nat=True,
    taps=True,
    groups=True,
    most_disks=5,
    most_nics=4,
)


class QemuEngine:
    """See engines/base.py. ``home`` is where notes about this host are kept. ``ways``: how running machines' memory may be taken,
    besides ``stream``; None: in all ways."""

    name: Final = "qemu"
    features: Final = FEATURES

    def __init__(self, home: Home, ways: Collection[Method] | None = None) -> None:
        self._home = home
        self._ways = ways
        self._notes: dict[str, Notes] = {}

    def _learn(self, arch: str) -> Notes:
        from insula.engines.qemu.probe import learn

        if arch not in self._notes:
            self._notes[arch] = learn(self._home, arch)
        return self._notes[arch]

    def choose_board(self, arch: str, former: BoardRecord | None = None) -> BoardRecord:
        from insula.engines.qemu.probe import choose

        return choose(self._learn(arch), former)

    def try_jail(self, plan: LaunchPlan, program: Path, words: tuple[str, ...]) -> bytes:
        from insula.engines.qemu.launch import Instead, launch

        build = self._learn("amd64").build
        with contextlib.suppress(MachineEnded):  # it never speaks as QEMU does, so that it did not come up is how this ends
            launch(plan, build, tracks=self._tracks(build), instead=Instead(program, words))
        return (plan.folder / names.QEMU_LOG).read_bytes()

    def fingerprint(self, board: BoardRecord) -> str:
        from insula.engines.qemu.probe import fingerprint

        return fingerprint(self._learn("amd64").build, board)

    def launch(self, plan: LaunchPlan) -> None:
        from insula.engines.qemu.launch import launch

        if plan.load is not None and plan.load.memory is not None:
            from insula.host.holes import fill_holes

            fill_holes(plan.load.memory)
            plan = _with_pieces(plan)
        build = self._learn("amd64").build
        launch(plan, build, tracks=self._tracks(build))

    def load(self, run: Path, state: Path, memory: Path) -> None:
        from insula.engines.qemu.migrate import load
        from insula.host.holes import fill_holes

        fill_holes(memory)  # of what was written since it was launched
        load(run / names.QMP_SOCKET, state)

    def compose_for(self, count: int, origin: Path, target: Path) -> bool:
        from insula.engines.qemu.siblings import compose_for

        return compose_for(count, origin, target)

    def _tracks(self, build: Build) -> bool:
        """Whether memory is taken behind the guest, and so its QEMU needs the host's userfaultfd: not where there is better."""
        from insula.engines.qemu.probe import has_mapped_ram

        if self._ways is None:
            return not has_mapped_ram(build)
        return "background-snapshot" in self._ways and "mapped-ram" not in self._ways

    def pause(self, run: Path) -> None:
        from insula.engines.qemu import monitor

        monitor.pause(run / names.QMP_SOCKET)

    def resume(self, run: Path) -> None:
        from insula.engines.qemu import monitor

        monitor.resume(run / names.QMP_SOCKET)

    def throttle(self, run: Path, disks: Collection[str], limits: Mapping[str, int]) -> None:
        from insula.engines.qemu import monitor
        from insula.engines.qemu.board import throttle_group

        monitor.throttle(run / names.QMP_SOCKET, [throttle_group(disk) for disk in disks], limits)

    def power_button(self, run: Path) -> None:
        from insula.engines.qemu import monitor

        monitor.power_button(run / names.QMP_SOCKET)

    def save(self, run: Path, order: SaveOrder) -> Saved:
        from insula.engines.qemu import migrate

        return migrate.save(run, order, migrate.WAYS if self._ways is None else self._ways)

    def switch_heads(self, run: Path, heads: tuple[NewHead, ...], layers: Mapping[str, Path], *, go_on: bool) -> None:
        from insula.engines.qemu import migrate

        migrate.switch_heads(run / names.QMP_SOCKET, heads, layers, go_on=go_on)

    def put_merged(self, run: Path, merged: MergedLayer) -> None:
        from insula.engines.qemu import chains

        chains.put_merged(run / names.QMP_SOCKET, merged)

    def set_link(self, run: Path, slot: int, up: bool) -> None:
        from insula.engines.qemu import cards

        cards.set_link(run / names.QMP_SOCKET, slot, up)

    def plug(self, run: Path, nic: NicPlan, *, offloads: bool) -> None:
        from insula.engines.qemu import cards

        cards.plug(run / names.QMP_SOCKET, nic, offloads=offloads)

    def cards(self, run: Path) -> set[int]:
        from insula.engines.qemu import cards

        return cards.slots(run / names.QMP_SOCKET)

    def pull(self, run: Path, slot: int) -> None:
        from insula.engines.qemu import cards

        cards.pull(run / names.QMP_SOCKET, slot)

    def disk_counts(self, runs: Mapping[str, Path]) -> dict[str, DiskCounts]:
        from insula.engines.qemu import readers

        return readers.disk_counts({key: run / names.QMP_READ_SOCKET for key, run in runs.items()})

    def set_links(self, run: Path, up: bool) -> None:
        from insula.engines.qemu import migrate

        migrate.set_links(run / names.QMP_SOCKET, up)

    def hardware(self, run: Path) -> Hardware:
        from insula.engines.qemu import hotplug

        return hotplug.hardware(run / names.QMP_SOCKET)

    def can_pull_cpus(self, board: BoardRecord) -> bool:
        # An emulated CPU leaves a listener for written memory behind, and whoever saves the machine waits for its thread for ever
        # (tcg_log_global_after_sync in QEMU's system/physmem.c; 10.0).
        return board.accelerator != "tcg"

    def plug_cpu(self, run: Path, board: BoardRecord, cpus: int, number: int) -> None:
        from insula.engines.qemu import hotplug

        hotplug.plug_cpu(run / names.QMP_SOCKET, board, cpus, number)

    def pull_cpu(self, run: Path, number: int) -> None:
        from insula.engines.qemu import hotplug

        hotplug.pull_cpu(run / names.QMP_SOCKET, number)

    def plug_memory(self, run: Path, dimm: Dimm) -> None:
        from insula.engines.qemu import hotplug

        hotplug.plug_memory(run / names.QMP_SOCKET, dimm)

    def pull_memory(self, run: Path, dimm: Dimm) -> None:
        from insula.engines.qemu import hotplug

        hotplug.pull_memory(run / names.QMP_SOCKET, dimm)

    def guest_memory(self, run: Path) -> GuestMemory | None:
        from insula.engines.qemu import hotplug

        return hotplug.guest_memory(run / names.QMP_SOCKET)

    def balloon(self, run: Path, size: int, *, wait: bool = True) -> int:
        from insula.engines.qemu import hotplug

        return hotplug.balloon(run / names.QMP_SOCKET, size, wait=wait)


def _with_pieces(plan: LaunchPlan) -> LaunchPlan:
    """The plan with the places of plugged memory in the file that is mapped. Raises DamagedRecord."""
    load = plan.load
    if load is None or load.memory is None or not plan.dimms:
        return plan
    from insula.engines.qemu.memory import find_pieces, read_blocks

    with open(load.memory, "rb") as file:
        return replace(plan, load=replace(load, pieces=find_pieces(read_blocks(file.fileno()))))
