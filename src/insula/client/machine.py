"""The SDK's machines and snapshots."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from insula.client.local import LocalClient
from insula.client.result import ExecResult
from insula.errors import NotFound
from insula.model import network_requests, requests, resource_requests
from insula.model.units import parse_size

if TYPE_CHECKING:
    from insula.model.network import Firewall, Profile
    from insula.model.security import Security
    from insula.model.status import (
        MachineDetails,
        MachineStatus,
        PortStatus,
        SnapshotDetails,
        SnapshotStatus,
        TrafficStatus,
    )
    from insula.model.usage import MachineUsage
    from insula.operations.lease import Lease
    from insula.operations.operation import Progress


class Machine:
    """One machine, by name. As a context manager it is deleted on the way out if it was run without a name."""

    def __init__(self, client: LocalClient, name: str, *, temporary: bool = False, lease: Lease | None = None) -> None:
        self._client = client
        self._temporary = temporary
        self._lease = lease
        self.name = name

    def __repr__(self) -> str:
        return f"Machine({self.name!r})"

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._temporary:
            with contextlib.suppress(NotFound):  # it ended by itself, and was deleted then
                self.delete(force=True)

    # -- life ---------------------------------------------------------------------------------------------------------------
    @property
    def status(self) -> MachineStatus:
        """How it is right now."""
        return self.show()

    @property
    def state(self) -> str:
        """``stopped``, ``starting``, ``running``, ``paused`` or ``broken``."""
        return str(self.status.state)

    def show(self) -> MachineDetails:
        """All that is known of it."""
        details: MachineDetails = self._client.do(requests.ShowMachine(name=self.name))
        return details

    def security(self) -> Security:
        """Which layers of its jail hold, looked at while it runs. Raises WrongState, MachineEnded, HostLacks."""
        found: Security = self._client.do(requests.ShowSecurity(name=self.name))
        return found

    def start(self, timeout: float = 300.0, *, cold: bool = False, insecure: bool | None = None) -> Machine:
        """Boot it and wait until its agent answers, ``timeout`` seconds at most.

        A suspended one goes on where it was; with ``cold`` it boots instead, and what its memory held is lost. ``insecure`` gives
        it leave, as in `Insula.run`, from now on, or takes it back.
        """
        self._client.do(requests.StartMachine(name=self.name, timeout=timeout, cold=cold, insecure=insecure))
        return self

    def stop(self, *, force: bool = False, timeout: float = 60.0) -> Machine:
        """Shut it down; ``force`` pulls the plug."""
        self._client.do(requests.StopMachine(name=self.name, force=force, timeout=timeout))
        return self

    def restart(self, *, force: bool = False, timeout: float = 60.0) -> Machine:
        self._client.do(requests.RestartMachine(name=self.name, force=force, timeout=timeout))
        return self

    def pause(self) -> Machine:
        self._client.do(requests.PauseMachine(name=self.name))
        return self

    def resume(self) -> Machine:
        self._client.do(requests.ResumeMachine(name=self.name))
        return self

    def resize(self, *, cpus: int | None = None, memory: str | int | None = None) -> MachineStatus:
        """Change its CPUs and its memory (bytes, or as ``1G``): at its next start, and at once if it runs and its guest goes
        along; what comes later is in the ``note`` of what is returned. Raises GuestError, HostLacks (``no_memory``)."""
        size = parse_size(memory) if isinstance(memory, str) else memory
        status: MachineStatus = self._client.do(resource_requests.LimitMachine(name=self.name, cpus=cpus, memory=size))
        return status

    def rename(self, new_name: str) -> Machine:
        self._client.do(requests.RenameMachine(name=self.name, new_name=new_name))
        self.name = new_name
        return self

    def clone(self, new_name: str, *, full: bool = False) -> Machine:
        """Make a stopped machine from this stopped one: sharing what is on its disks now, or with ``full`` a copy of its own."""
        status = self._client.do(requests.CloneMachine(name=self.name, new_name=new_name, full=full))
        return Machine(self._client, status.name)

    def delete(self, *, force: bool = False) -> None:
        """Delete it with its disks."""
        try:
            self._client.do(requests.DeleteMachine(name=self.name, force=force))
        except NotFound:
            self._drop_lease()
            raise
        self._drop_lease()

    def _drop_lease(self) -> None:
        if self._lease is not None:
            self._lease.close()

    # -- rewind -------------------------------------------------------------------------------------------------------------
    def snapshot(self, name: str = "", *, description: str = "") -> Snapshot:
        """Keep it as it is now: memory, devices and disks at one instant. Without ``name`` one is chosen.

        Raises AlreadyExists (``snapshot_exists``), Busy, HostLacks (``no_space``).
        """
        status = self._client.do(requests.CreateSnapshot(name=self.name, snapshot=name, description=description))
        return Snapshot(self, status.name)

    def snapshots(self) -> list[Snapshot]:
        """Its snapshots, oldest first."""
        return [Snapshot(self, status.name) for status in self._client.do(requests.ListSnapshots(name=self.name))]

    def fork(
        self, count: int = 1, *, name: str = "", timeout: float = 60.0, progress: Callable[[Progress], None] | None = None
    ) -> list[Machine]:
        """Make ``count`` running machines from this running one as it is now; it goes on meanwhile.

        They share memory and disks with it, copy on write, and have identities of their own. ``name`` is a pattern such as
        ``web-{n}``, ``{n}`` counting from 1. Without it they are temporary, as those of `Insula.run` are. Each is given
        ``timeout`` seconds to answer. When one cannot be made none is.

        Raises WrongState (it does not run), HostLacks (``no_memory``: the hint says how many fit), AlreadyExists, Busy.
        """
        return self._fork("", count, name, timeout, progress)

    def _fork(
        self, snapshot: str, count: int, name: str, timeout: float, progress: Callable[[Progress], None] | None
    ) -> list[Machine]:
        temporary = not name
        request = requests.ForkMachine(
            name=self.name,
            snapshot=snapshot,
            count=count,
            pattern=name,
            ephemeral=temporary,
            attached=temporary,
            timeout=timeout,
        )
        made = self._client.do(request, listener=progress)
        leases: list[Lease | None] = made.leases or [None] * count
        return [
            Machine(self._client, machine.name, temporary=temporary, lease=lease)
            for machine, lease in zip(made.machines, leases, strict=True)
        ]

    def suspend(self) -> Machine:
        """Write its memory to disk and turn it off; `start` lets it go on where it was."""
        self._client.do(requests.SuspendMachine(name=self.name))
        return self

    # -- networks -----------------------------------------------------------------------------------------------------------
    def attach(self, network: str, *, address: str = "") -> Machine:
        """Put it on a network, at once if it runs. Raises NotFound, AlreadyExists, HostLacks."""
        self._client.do(network_requests.AttachNetwork(name=self.name, network=network, address=address))
        return self

    def detach(self, network: str) -> Machine:
        """Take it off a network. Raises NotFound, GuestError (``card_in_use``)."""
        self._client.do(network_requests.DetachNetwork(name=self.name, network=network))
        return self

    def set_link(self, up: bool, network: str = "") -> Machine:
        """Plug or pull the cable of its card on ``network``, or of all its cards."""
        self._client.do(network_requests.SetLink(name=self.name, network=network, up=up))
        return self

    def limit_network(self, *, up: int | str | None = None, down: int | str | None = None, network: str = "") -> Machine:
        """Limit what it sends and receives: bits per second, or text like ``50mbit``; 0 is without limit, None leaves it."""
        from insula.model.network import parse_rate

        rates = [parse_rate(rate) if isinstance(rate, str) else rate for rate in (up, down)]
        self._client.do(network_requests.LimitNetwork(name=self.name, network=network, up=rates[0], down=rates[1]))
        return self

    def limit(self, **limits: str | float) -> Machine:
        """Limit what it may have of this host, at once if it runs, and from now on: the flags of `insula limit` with ``_`` for
        ``-``, such as ``cpu_limit=0.5`` or ``disk_rate="20M"``; ``"none"`` takes one back.

        Raises UsageError (``bad_limit``, ``contradictory_limits``, ``beyond_host``), HostLacks (``no_group``).
        """
        from insula.model.limits import words_of
        from insula.model.resource_requests import LimitMachine

        self._client.do(LimitMachine(name=self.name, changes=words_of(limits)))
        return self

    def publish(self, *ports: str) -> list[PortStatus]:
        """Have ports of this host lead to it, such as ``8080:80`` or ``0.0.0.0:5353:53/udp``.

        Raises AlreadyExists (``port_taken``).
        """
        from insula.model.network import parse_publish

        request = network_requests.PublishPorts(name=self.name, ports=tuple(parse_publish(port) for port in ports))
        found: list[PortStatus] = self._client.do(request)
        return found

    def unpublish(self, *ports: str) -> None:
        """Take ports back; none named: all."""
        from insula.model.network import parse_publish

        self._client.do(network_requests.UnpublishPorts(name=self.name, ports=tuple(parse_publish(port) for port in ports)))

    def ports(self) -> list[PortStatus]:
        """Its published ports."""
        found: list[PortStatus] = self._client.do(network_requests.ListPorts(name=self.name))
        return found

    def set_firewall(
        self,
        *,
        profile: Profile | None = None,
        isolated: bool | None = None,
        add: Iterable[str] = (),
        remove: Iterable[str] = (),
        clear: bool = False,
    ) -> Firewall:
        """Change its firewall, all at once. Rules are text like ``allow to example.org tcp 443``. Raises UsageError, NotFound."""
        from insula.model.network import parse_rule

        request = network_requests.SetFirewall(
            name=self.name,
            profile=profile,
            isolated=isolated,
            clear=clear,
            add=tuple(parse_rule(rule) for rule in add),
            remove=tuple(parse_rule(rule) for rule in remove),
        )
        firewall: Firewall = self._client.do(request)
        return firewall

    def traffic(self) -> list[TrafficStatus]:
        """What passed its network cards."""
        found: list[TrafficStatus] = self._client.do(network_requests.ShowTraffic(names=(self.name,)))
        return found

    def usage(self, interval: float = 0.0) -> MachineUsage | None:
        """What it uses of the host, None unless it runs; rates are of two looks, ``interval`` seconds apart, and 0 without."""
        found = self._client.do(resource_requests.ShowUsage(names=(self.name,), interval=interval)).machines
        return found[0] if found else None

    # -- inside -------------------------------------------------------------------------------------------------------------
    def exec(
        self,
        *argv: str,
        input: bytes | str | None = None,  # noqa: A002 - the name that subprocess.run has taught everybody
        env: Mapping[str, str] | None = None,
        user: str = "",
        cwd: str = "",
        check: bool = False,
    ) -> ExecResult:
        """Run a command in the guest and keep its output.

        ``check`` raises GuestError when it fails. Raises GuestError (``command_not_found`` …), AgentAbsent, WrongState.
        """
        from insula.client.streams import MemoryStreams

        data = input.encode() if isinstance(input, str) else input
        streams = MemoryStreams(data)
        request = requests.ExecMachine(
            name=self.name, argv=argv, env=tuple(f"{key}={value}" for key, value in (env or {}).items()), user=user, cwd=cwd
        )
        status = self._client.do(request, streams)
        result = ExecResult(argv, status.shell_code, streams.output, streams.errors, status.why)
        return result.check() if check else result

    def put(self, source: str | Path | Iterable[str | Path], destination: str) -> None:
        """Copy files or folders of this computer into the guest, as ``cp -r`` would."""
        from insula.client.files import put

        put(self._client, self.name, [source] if isinstance(source, (str, Path)) else list(source), destination)

    def get(self, source: str | Iterable[str], destination: str | Path) -> None:
        """Copy files or folders of the guest to this computer, as ``cp -r`` would."""
        from insula.client.files import get

        get(self._client, self.name, [source] if isinstance(source, str) else list(source), destination)

    def logs(self) -> bytes:
        """What the guest printed on its console, as far as it was kept."""
        from insula.client.streams import MemoryStreams

        streams = MemoryStreams(None)
        self._client.do(requests.ReadLogs(name=self.name), streams)
        return streams.output

    def events(self) -> list[dict[str, Any]]:
        """What happened to it, oldest first."""
        import json

        from insula.client.streams import MemoryStreams

        streams = MemoryStreams(None)
        self._client.do(requests.ReadEvents(name=self.name), streams)
        return [json.loads(line) for line in streams.output.splitlines()]


class Snapshot:
    """One snapshot, by its machine and name."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine = machine
        self.name = name

    def __repr__(self) -> str:
        return f"Snapshot({f'{self.machine.name}@{self.name}'!r})"

    @property
    def status(self) -> SnapshotStatus:
        """What `insula snapshot list` shows of it."""
        return self.show()

    def show(self) -> SnapshotDetails:
        """All that is known of it. Raises NotFound, DamagedRecord."""
        details: SnapshotDetails = self.machine._client.do(requests.ShowSnapshot(name=self.machine.name, snapshot=self.name))
        return details

    def restore(self, *, keep: bool = True, disks: bool = False) -> Machine:
        """Bring the machine back to it, in place: as it was then, running if it ran then. Returns the machine.

        With ``keep``, what the machine was until now is kept as its snapshot ``before-restore``. ``disks``: only its disks, which
        are as after a power cut then; the machine is off, and boots from them. Raises NotFound, Busy,
        DamagedRecord (a file was changed), HostLacks (this host cannot go on from it).
        """
        self.machine._client.do(requests.RestoreSnapshot(name=self.machine.name, snapshot=self.name, keep=keep, disks=disks))
        return self.machine

    def fork(
        self, count: int = 1, *, name: str = "", timeout: float = 60.0, progress: Callable[[Progress], None] | None = None
    ) -> list[Machine]:
        """Make ``count`` running machines that go on from it. Arguments and errors as for `Machine.fork`."""
        return self.machine._fork(self.name, count, name, timeout, progress)

    def export(self, file: str | Path | BinaryIO, *, passphrase: str | bytes | None = None) -> None:
        """Write it, memory included, to a new file (or an open one), for `Insula.import_snapshot`; encrypted with a passphrase.

        Raises AlreadyExists (``file_exists``), DamagedRecord, Busy, HostLacks (``no_space``).
        """
        from insula.client.parcels import outgoing, transfer

        with outgoing(file) as stream:
            request = requests.ExportSnapshot(name=self.machine.name, snapshot=self.name)
            self.machine._client.do(request, transfer(stream, passphrase))

    def delete(self) -> None:
        """Delete it. Machines forked from it, and later snapshots, keep what they need."""
        self.machine._client.do(requests.DeleteSnapshot(name=self.machine.name, snapshot=self.name))
