"""Published ports: those of the host that lead to a machine, whenever it runs."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from insula.errors import AlreadyExists, HostLacks, InsulaError, NotFound
from insula.model.network import Nic, Publish, clash, format_publish
from insula.model.network_requests import ListPorts, PublishPorts, UnpublishPorts
from insula.model.status import PortStatus
from insula.operations.cabling import attached
from insula.operations.cards import has_fabric
from insula.operations.context import Context
from insula.operations.hold import hold_machine, noted
from insula.operations.observe import is_alive
from insula.operations.operation import Operation, Steps
from insula.store.events import append_event
from insula.store.machines import MachineRecord, machine_folder, machine_names, read_machine, write_machine
from insula.store.names import Home


def publish(context: Context, request: PublishPorts, operation: Operation) -> list[PortStatus]:
    """Publish ports of a machine; it need not run. Raises NotFound, AlreadyExists (``port_taken``: who holds it), HostLacks."""
    with hold_machine(context, request.name, "publish") as held:
        if not any(nic.ipv4 for nic in held.record.nics):
            raise _unreachable(context, request.name, None)
        new = [port for port in request.ports if port not in held.record.published]
        check_free(context.home, request.name, new)
        after = msgspec.structs.replace(held.record, published=[*held.record.published, *new])
        with noted(held, "publish", takes_back=True), Steps(operation) as steps:
            write_machine(held.folder, after)
            steps.undo(lambda: write_machine(held.folder, held.record))
            if held.status.state.has_process:
                open_ports(context, request.name, after, [port for port in request.ports if port not in new])
                open_ports(context, request.name, after, new)
        append_event(held.folder, "published", ports=[format_publish(port) for port in new])
        return _status(context, held.folder, after)


def unpublish(context: Context, request: UnpublishPorts, operation: Operation) -> list[PortStatus]:
    """Take ports back. Raises NotFound."""
    del operation
    from insula.networks.forwarders import unpublish as close

    with hold_machine(context, request.name, "unpublish") as held:
        gone = list(request.ports) or held.record.published
        for port in gone:
            if port not in held.record.published:
                raise NotFound(f"{request.name} does not publish {format_publish(port)}", code="port_not_published")
        after = msgspec.structs.replace(held.record, published=[port for port in held.record.published if port not in gone])
        with noted(held, "unpublish"):
            write_machine(held.folder, after)
            for port in gone:
                close(context.home, port)
        append_event(held.folder, "unpublished", ports=[format_publish(port) for port in gone])
        return _status(context, held.folder, after)


def list_ports(context: Context, request: ListPorts, operation: Operation) -> list[PortStatus]:
    """Published ports of a machine, or of all."""
    del operation
    if request.name:
        folder = machine_folder(context.home, request.name)
        return _status(context, folder, read_machine(folder))
    found = []
    for name in machine_names(context.home):
        folder = context.home.machine(name)
        with contextlib.suppress(InsulaError, OSError):
            found += _status(context, folder, read_machine(folder))
    return found


def check_free(home: Home, name: str, ports: list[Publish]) -> None:
    """Raises AlreadyExists when another machine publishes one of ``ports``, whether it runs or not."""
    if not ports:
        return
    for other in machine_names(home):
        if other == name:
            continue
        with contextlib.suppress(OSError):
            try:
                record = read_machine(home.machine(other))
            except InsulaError:
                continue
            for port in ports:
                if any(clash(port, theirs) for theirs in record.published):
                    raise AlreadyExists(
                        f"{place(port)} is published by {other}",
                        code="port_taken",
                        hint=f"choose another, or: insula unpublish {other} {format_publish(port)}",
                    )


def place(port: Publish) -> str:
    """``127.0.0.1:8080``."""
    return f"[{port.address}]:{port.host_port}" if ":" in port.address else f"{port.address}:{port.host_port}"


def open_ports(context: Context, name: str, record: MachineRecord, ports: list[Publish]) -> None:
    """Listen for a machine that runs. Raises AlreadyExists (``port_taken``), HostLacks; then on none of ``ports``."""
    if not ports:
        return
    from insula.networks.forwarders import publish as listen
    from insula.networks.forwarders import unpublish as close

    nic = next((nic for nic in record.nics if nic.ipv4), None)
    if nic is None or not has_fabric(context):
        raise _unreachable(context, name, nic)
    card = attached(context.home, name, record, nic)
    with contextlib.ExitStack() as undo:
        for port in ports:
            listen(context.home, card, port)
            undo.callback(close, context.home, port)
        undo.pop_all()


def _unreachable(context: Context, name: str, nic: Nic | None) -> HostLacks:
    if nic is None:
        return HostLacks(
            f"{name} has no address that ports of this host could lead to",
            code="no_address",
            hint=f"put it on a private or NAT network: insula network attach nat {name}",
        )
    from insula.networks.ability import probe

    return HostLacks(
        f"this host can make no network by which ports could lead to {name}: {probe(context.home).why}",
        code="no_fabric",
        hint="see what is missing: insula doctor",
    )


def reopen_ports(context: Context, name: str, record: MachineRecord) -> None:
    """As `open_ports`, for a machine that goes on in any case: `ports` and its events tell what could not be."""
    try:
        open_ports(context, name, record, record.published)
    except InsulaError as refusal:
        append_event(context.home.machine(name), "ports-closed", why=refusal.message)


def _status(context: Context, folder: Path, record: MachineRecord) -> list[PortStatus]:
    from insula.networks.forwarders import published

    alive = bool(record.published) and is_alive(folder)
    there = [each.publish for each in published(context.home) if each.machine_id == record.id] if alive else []
    found = []
    for port in record.published:
        listening = port in there
        problem = "nothing listens: insula network repair" if alive and not listening else None
        found.append(PortStatus(folder.name, place(port), port.guest_port, port.protocol, listening, problem))
    return found
