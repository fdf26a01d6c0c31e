"""The SDK's nouns: what `import insula` gives.

with insula.run("debian") as machine:
    print(machine.exec("uname", "-a").stdout)
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypedDict, Unpack

from insula.client.local import LocalClient
from insula.client.machine import Machine, Snapshot
from insula.client.result import ExecResult
from insula.model import network_requests, requests
from insula.model.network import Firewall
from insula.model.spec import Display, Firmware, MachineSpec, networks_asked
from insula.model.units import parse_size

if TYPE_CHECKING:
    from insula.model.limits import Limits
    from insula.model.network import Mode, Publish
    from insula.model.status import DiskUsage, MachineStatus, NetworkDetails, NetworkStatus, WarmStatus
    from insula.operations.image import ImageStatus
    from insula.operations.operation import Progress

__all__ = ["ExecResult", "Insula", "Machine", "Shape", "Snapshot", "connect", "make_spec", "run"]

Size = int | str


class Shape(TypedDict, total=False):
    """A machine's shape as people write it: sizes in bytes, or as text like ``1G``. What is left out has its default."""

    cpus: int
    memory: Size
    disk: Size
    network: str | Sequence[str]
    firmware: Firmware
    display: Display
    tpm: bool


class Insula:
    """A connection to Insula on this computer. ``home`` is the state folder (default: the command line's)."""

    def __init__(self, home: str | Path | None = None) -> None:
        self.client = LocalClient(Path(home) if home is not None else None)

    def run(
        self,
        image: str,
        *,
        name: str = "",
        timeout: float = 300.0,
        cold: bool = False,
        publish: Sequence[str] = (),
        firewall: Firewall | None = None,
        limits: Mapping[str, str | float] | None = None,
        insecure: bool = False,
        progress: Callable[[Progress], None] | None = None,
        **shape: Unpack[Shape],
    ) -> Machine:
        """Make a machine from ``image`` (building it if need be), start it and wait until it answers.

        It goes on from a state the image has just after boot, which the first one of its shape makes; ``cold`` boots it.

        Without ``name`` the machine is temporary: it is deleted at the end of a ``with`` block and, at the latest, when this
        process ends. ``shape``: cpus, memory and disk (bytes, or text like ``1G``), network, firmware, display, tpm.
        ``limits``: what it may have of this host, as `Machine.limit` takes it. ``insecure``: where this host can have no whole
        jail, it may run without what cannot be had.
        """
        request = requests.RunMachine(
            image=image,
            name=name,
            spec=make_spec(**shape),
            ephemeral=not name,
            attached=not name,
            published=_ports(publish),
            firewall=firewall or Firewall(),
            limits=_limits(limits),
            insecure=insecure,
            timeout=timeout,
            cold=cold,
        )
        result = self.client.do(request, listener=progress)
        return Machine(self.client, result.machine.name, temporary=not name, lease=result.lease)

    def create(
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
        """Make a stopped machine; arguments as for `run`."""
        request = requests.CreateMachine(
            image=image,
            name=name,
            spec=make_spec(**shape),
            published=_ports(publish),
            firewall=firewall or Firewall(),
            limits=_limits(limits),
            insecure=insecure,
        )
        status = self.client.do(request)
        return Machine(self.client, status.name)

    def get(self, name: str) -> Machine:
        """An existing machine. Raises NotFound."""
        self.client.do(requests.ShowMachine(name=name))
        return Machine(self.client, name)

    def list(self) -> list[MachineStatus]:
        """All machines, as `insula list` shows them."""
        machines: list[MachineStatus] = self.client.do(requests.ListMachines())
        return machines

    def build(
        self, recipe: str, *, text: str | None = None, refresh: bool = False, progress: Callable[[Progress], None] | None = None
    ) -> ImageStatus:
        """Build an image from a built-in recipe, or from a recipe's TOML ``text``."""
        built: ImageStatus = self.client.do(requests.BuildImage(recipe=recipe, text=text, refresh=refresh), listener=progress)
        return built

    def images(self) -> builtins.list[ImageStatus]:
        """All images, and the built-in recipes that are not built yet (their digest is empty)."""
        images: builtins.list[ImageStatus] = self.client.do(requests.ListImages())
        return images

    def import_snapshot(
        self,
        file: str | Path | BinaryIO,
        name: str,
        *,
        snapshot: str = "",
        passphrase: str | bytes | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Snapshot:
        """Take in what `Snapshot.export` wrote as a snapshot of the machine ``name``, made stopped if there is none.

        Raises DamagedRecord (the file), UsageError (``passphrase_needed``, ``wrong_passphrase``), HostLacks
        (``snapshot_not_loadable``, ``no_space``), AlreadyExists, WrongState (``snapshot_does_not_fit``).
        """
        from insula.client.parcels import incoming, transfer

        with incoming(file) as stream:
            request = requests.ImportSnapshot(name=name, snapshot=snapshot)
            status = self.client.do(request, transfer(stream, passphrase), listener=progress)
        return Snapshot(Machine(self.client, status.machine), status.name)

    def create_network(
        self,
        name: str,
        mode: Mode = "nat",
        *,
        subnet: str = "",
        parent: str = "",
        vlan: int | None = None,
        isolated: bool = False,
    ) -> NetworkStatus:
        """Make a network. Raises UsageError, AlreadyExists (``subnet_taken`` too), HostLacks (``no_fabric``)."""
        request = network_requests.CreateNetwork(name=name, mode=mode, ipv4=subnet, parent=parent, vlan=vlan, isolated=isolated)
        made: NetworkStatus = self.client.do(request)
        return made

    def networks(self) -> builtins.list[NetworkStatus]:
        """All networks."""
        found: builtins.list[NetworkStatus] = self.client.do(network_requests.ListNetworks())
        return found

    def network(self, name: str) -> NetworkDetails:
        """A network and who hangs on it. Raises NotFound."""
        found: NetworkDetails = self.client.do(network_requests.ShowNetwork(name=name))
        return found

    def delete_network(self, name: str) -> None:
        """Delete a network that no machine is on. Raises NotFound, WrongState (``network_in_use``)."""
        self.client.do(network_requests.DeleteNetwork(name=name))

    def repair_networks(self) -> builtins.list[str]:
        """Make links, rules and helpers be again what running machines need; what was not so, in words."""
        mended: builtins.list[str] = self.client.do(network_requests.RepairNetworks())
        return mended

    def disk_usage(self, *machines: str) -> DiskUsage:
        """What holds the disk space: these machines, or all there is."""
        usage: DiskUsage = self.client.do(requests.ShowDiskUsage(names=machines))
        return usage

    def warm(self, image: str, *, refresh: bool = False, **shape: Unpack[Shape]) -> WarmStatus:
        """Keep the state ``image`` has just after boot, ahead of the first `run` of this shape; ``refresh`` makes it anew."""
        state: WarmStatus = self.client.do(requests.WarmImage(image=image, spec=make_spec(**shape), refresh=refresh))
        return state

    def warm_states(self) -> builtins.list[WarmStatus]:
        """The states that are kept, the newest first."""
        states: builtins.list[WarmStatus] = self.client.do(requests.ListWarmStates())
        return states

    def delete_warm(self, image: str = "") -> builtins.list[WarmStatus]:
        """Delete the states of ``image``, or all; returns what they were."""
        states: builtins.list[WarmStatus] = self.client.do(requests.DeleteWarmStates(image=image))
        return states


def make_spec(
    *,
    cpus: int = 1,
    memory: Size = "512M",
    disk: Size = "10G",
    network: str | Sequence[str] = "nat",
    firmware: str = "bios",
    display: str = "none",
    tpm: bool = False,
) -> MachineSpec:
    """A machine's shape from what people write. Raises UsageError for an impossible one."""
    import msgspec

    from insula.errors import UsageError

    shape = {"cpus": cpus, "memory": _bytes(memory), "disk": _bytes(disk)}
    networks = networks_asked((network,) if isinstance(network, str) else network)
    try:
        return msgspec.convert({**shape, "networks": networks, "firmware": firmware, "display": display, "tpm": tpm}, MachineSpec)
    except msgspec.ValidationError as cause:
        raise UsageError(f"not a possible shape: {cause}", code="bad_shape") from cause


def _ports(words: Sequence[str]) -> tuple[Publish, ...]:
    from insula.model.network import parse_publish

    return tuple(parse_publish(word) for word in words)


def _limits(words: Mapping[str, str | float] | None) -> Limits:
    from insula.model.limits import Limits, words_of

    return words_of(words or {}).apply(Limits())


def _bytes(size: Size) -> int:
    return size if isinstance(size, int) else parse_size(size)


def connect(home: str | Path | None = None) -> Insula:
    """Insula on this computer."""
    return Insula(home)


def run(
    image: str,
    *,
    name: str = "",
    timeout: float = 300.0,
    cold: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **shape: Unpack[Shape],
) -> Machine:
    """`connect().run(…)`: make a machine, start it and wait until it answers. See `Insula.run`."""
    return connect().run(image, name=name, timeout=timeout, cold=cold, progress=progress, **shape)
