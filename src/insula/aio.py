"""The SDK for asyncio: the same nouns and verbs, each call done in a thread so that the event loop never waits.

    async with await insula.aio.run("debian") as machine:
        print((await machine.exec("uname", "-a")).stdout)

Cancelling a call that runs a command does not end the command; ending the machine does.
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, ParamSpec, TypeVar, Unpack

from insula.client import sdk
from insula.client.sdk import ExecResult, Shape
from insula.model.network import Firewall, Mode, Profile
from insula.model.status import (
    DiskUsage,
    MachineDetails,
    MachineStatus,
    NetworkDetails,
    NetworkStatus,
    PortStatus,
    SnapshotDetails,
    SnapshotStatus,
    TrafficStatus,
    WarmStatus,
)
from insula.model.usage import MachineUsage

if TYPE_CHECKING:
    from insula.model.security import Security
    from insula.operations.image import ImageStatus
    from insula.operations.operation import Progress

P = ParamSpec("P")
T = TypeVar("T")


async def _in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return await asyncio.to_thread(work, *args, **kwargs)


class _Forkable:
    """What machines can go on from."""

    sync: sdk.Machine | sdk.Snapshot

    async def fork(
        self,
        count: int = 1,
        *,
        name: str = "",
        timeout: float = 60.0,  # noqa: ASYNC109 - the request carries it; nothing here waits
        progress: Callable[[Progress], None] | None = None,
    ) -> list[Machine]:
        """As of `insula.Machine` and `insula.Snapshot`; ``progress`` is called in another thread."""
        return [Machine(each) for each in await _in_thread(self.sync.fork, count, name=name, timeout=timeout, progress=progress)]


class Machine(_Forkable):
    """One machine. ``sync`` is the same machine for blocking code."""

    sync: sdk.Machine

    def __init__(self, machine: sdk.Machine) -> None:
        self.sync = machine

    @property
    def name(self) -> str:
        return self.sync.name

    def __repr__(self) -> str:
        return f"aio.Machine({self.name!r})"

    async def __aenter__(self) -> Machine:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        await _in_thread(self.sync.__exit__, kind, value, trace)

    async def exec(
        self,
        *argv: str,
        input: bytes | str | None = None,  # noqa: A002 - the name that subprocess.run has taught everybody
        env: Mapping[str, str] | None = None,
        user: str = "",
        cwd: str = "",
        check: bool = False,
    ) -> ExecResult:
        """As `insula.Machine.exec`."""
        return await _in_thread(self.sync.exec, *argv, input=input, env=env, user=user, cwd=cwd, check=check)

    async def show(self) -> MachineDetails:
        return await _in_thread(self.sync.show)

    async def security(self) -> Security:
        return await _in_thread(self.sync.security)

    async def status(self) -> MachineStatus:
        """How it is right now."""
        return await self.show()

    async def start(
        self,
        timeout: float = 300.0,  # noqa: ASYNC109 - the request carries it
        *,
        cold: bool = False,
        insecure: bool | None = None,
    ) -> None:
        await _in_thread(self.sync.start, timeout, cold=cold, insecure=insecure)

    async def stop(self, *, force: bool = False, timeout: float = 60.0) -> None:  # noqa: ASYNC109 - as above
        await _in_thread(self.sync.stop, force=force, timeout=timeout)

    async def restart(self, *, force: bool = False, timeout: float = 60.0) -> None:  # noqa: ASYNC109 - as above
        await _in_thread(self.sync.restart, force=force, timeout=timeout)

    async def pause(self) -> None:
        await _in_thread(self.sync.pause)

    async def resume(self) -> None:
        await _in_thread(self.sync.resume)

    async def resize(self, *, cpus: int | None = None, memory: str | int | None = None) -> MachineStatus:
        return await _in_thread(self.sync.resize, cpus=cpus, memory=memory)

    async def rename(self, new_name: str) -> None:
        await _in_thread(self.sync.rename, new_name)

    async def delete(self, *, force: bool = False) -> None:
        await _in_thread(self.sync.delete, force=force)

    async def clone(self, new_name: str, *, full: bool = False) -> Machine:
        return Machine(await _in_thread(self.sync.clone, new_name, full=full))

    async def suspend(self) -> None:
        await _in_thread(self.sync.suspend)

    async def snapshot(self, name: str = "", *, description: str = "") -> Snapshot:
        """As `insula.Machine.snapshot`."""
        return Snapshot(await _in_thread(self.sync.snapshot, name, description=description))

    async def snapshots(self) -> list[Snapshot]:
        return [Snapshot(each) for each in await _in_thread(self.sync.snapshots)]

    async def attach(self, network: str, *, address: str = "") -> None:
        await _in_thread(self.sync.attach, network, address=address)

    async def detach(self, network: str) -> None:
        await _in_thread(self.sync.detach, network)

    async def set_link(self, up: bool, network: str = "") -> None:
        await _in_thread(self.sync.set_link, up, network)

    async def limit_network(self, *, up: int | str | None = None, down: int | str | None = None, network: str = "") -> None:
        await _in_thread(self.sync.limit_network, up=up, down=down, network=network)

    async def limit(self, **limits: str | float) -> None:
        """As `insula.Machine.limit`."""
        await _in_thread(self.sync.limit, **limits)

    async def publish(self, *ports: str) -> list[PortStatus]:
        return await _in_thread(self.sync.publish, *ports)

    async def unpublish(self, *ports: str) -> None:
        await _in_thread(self.sync.unpublish, *ports)

    async def ports(self) -> list[PortStatus]:
        return await _in_thread(self.sync.ports)

    async def set_firewall(
        self,
        *,
        profile: Profile | None = None,
        isolated: bool | None = None,
        add: Iterable[str] = (),
        remove: Iterable[str] = (),
        clear: bool = False,
    ) -> Firewall:
        """As `insula.Machine.set_firewall`."""
        return await _in_thread(self.sync.set_firewall, profile=profile, isolated=isolated, add=add, remove=remove, clear=clear)

    async def traffic(self) -> list[TrafficStatus]:
        return await _in_thread(self.sync.traffic)

    async def usage(self, interval: float = 0.0) -> MachineUsage | None:
        """As `insula.Machine.usage`."""
        return await _in_thread(self.sync.usage, interval)

    async def put(self, source: str | Path | list[str | Path], destination: str) -> None:
        await _in_thread(self.sync.put, source, destination)

    async def get(self, source: str | list[str], destination: str | Path) -> None:
        await _in_thread(self.sync.get, source, destination)

    async def logs(self) -> bytes:
        return await _in_thread(self.sync.logs)

    async def events(self) -> list[dict[str, Any]]:
        return await _in_thread(self.sync.events)


class Snapshot(_Forkable):
    """One snapshot. ``sync`` is the same for blocking code."""

    sync: sdk.Snapshot

    def __init__(self, snapshot: sdk.Snapshot) -> None:
        self.sync = snapshot

    @property
    def name(self) -> str:
        return self.sync.name

    @property
    def machine(self) -> Machine:
        return Machine(self.sync.machine)

    def __repr__(self) -> str:
        return f"aio.{self.sync!r}"

    async def show(self) -> SnapshotDetails:
        return await _in_thread(self.sync.show)

    async def status(self) -> SnapshotStatus:
        """What `insula snapshot list` shows of it."""
        return await self.show()

    async def restore(self, *, keep: bool = True, disks: bool = False) -> Machine:
        """As `insula.Snapshot.restore`."""
        return Machine(await _in_thread(self.sync.restore, keep=keep, disks=disks))

    async def export(self, file: str | Path | BinaryIO, *, passphrase: str | bytes | None = None) -> None:
        """As `insula.Snapshot.export`."""
        await _in_thread(self.sync.export, file, passphrase=passphrase)

    async def delete(self) -> None:
        await _in_thread(self.sync.delete)


class Insula:
    """A connection to Insula on this computer."""

    def __init__(self, home: str | Path | None = None) -> None:
        self.sync = sdk.Insula(home)

    async def run(
        self,
        image: str,
        *,
        name: str = "",
        timeout: float = 300.0,  # noqa: ASYNC109 - the request carries it; nothing here waits
        cold: bool = False,
        publish: Sequence[str] = (),
        firewall: Firewall | None = None,
        limits: Mapping[str, str | float] | None = None,
        insecure: bool = False,
        progress: Callable[[Progress], None] | None = None,
        **shape: Unpack[Shape],
    ) -> Machine:
        """As `insula.Insula.run`; ``progress`` is called in another thread."""
        made = await _in_thread(
            self.sync.run,
            image,
            name=name,
            timeout=timeout,
            cold=cold,
            publish=publish,
            firewall=firewall,
            limits=limits,
            insecure=insecure,
            progress=progress,
            **shape,
        )
        return Machine(made)

    async def create(
        self,
        image: str,
        *,
        name: str = "",
        publish: Sequence[str] = (),
        firewall: Firewall | None = None,
        limits: Mapping[str, str | float] | None = None,
        insecure: bool = False,
        **shape: Unpack[Shape],
    ) -> Machine:
        """As `insula.Insula.create`."""
        made = await _in_thread(
            self.sync.create, image, name=name, publish=publish, firewall=firewall, limits=limits, insecure=insecure, **shape
        )
        return Machine(made)

    async def create_network(
        self,
        name: str,
        mode: Mode = "nat",
        *,
        subnet: str = "",
        parent: str = "",
        vlan: int | None = None,
        isolated: bool = False,
    ) -> NetworkStatus:
        """As `insula.Insula.create_network`."""
        return await _in_thread(self.sync.create_network, name, mode, subnet=subnet, parent=parent, vlan=vlan, isolated=isolated)

    async def networks(self) -> builtins.list[NetworkStatus]:
        return await _in_thread(self.sync.networks)

    async def network(self, name: str) -> NetworkDetails:
        return await _in_thread(self.sync.network, name)

    async def delete_network(self, name: str) -> None:
        await _in_thread(self.sync.delete_network, name)

    async def repair_networks(self) -> builtins.list[str]:
        return await _in_thread(self.sync.repair_networks)

    async def build(self, recipe: str, *, text: str | None = None, refresh: bool = False) -> ImageStatus:
        return await _in_thread(self.sync.build, recipe, text=text, refresh=refresh)

    async def images(self) -> builtins.list[ImageStatus]:
        return await _in_thread(self.sync.images)

    async def import_snapshot(
        self,
        file: str | Path | BinaryIO,
        name: str,
        *,
        snapshot: str = "",
        passphrase: str | bytes | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Snapshot:
        """As `insula.Insula.import_snapshot`; ``progress`` is called in another thread."""
        imported = await _in_thread(
            self.sync.import_snapshot, file, name, snapshot=snapshot, passphrase=passphrase, progress=progress
        )
        return Snapshot(imported)

    async def disk_usage(self, *machines: str) -> DiskUsage:
        """As `insula.Insula.disk_usage`."""
        return await _in_thread(self.sync.disk_usage, *machines)

    async def warm(self, image: str, *, refresh: bool = False, **shape: Unpack[Shape]) -> WarmStatus:
        return await _in_thread(self.sync.warm, image, refresh=refresh, **shape)

    async def warm_states(self) -> builtins.list[WarmStatus]:
        return await _in_thread(self.sync.warm_states)

    async def delete_warm(self, image: str = "") -> builtins.list[WarmStatus]:
        return await _in_thread(self.sync.delete_warm, image)

    async def get(self, name: str) -> Machine:
        return Machine(await _in_thread(self.sync.get, name))

    async def list(self) -> list[MachineStatus]:
        return await _in_thread(self.sync.list)


def connect(home: str | Path | None = None) -> Insula:
    """Insula on this computer, for asyncio."""
    return Insula(home)


async def run(image: str, *, name: str = "", cold: bool = False, **shape: Unpack[Shape]) -> Machine:
    """As `insula.run`."""
    return await connect().run(image, name=name, cold=cold, **shape)
