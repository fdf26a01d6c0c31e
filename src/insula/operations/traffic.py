"""What passes a machine's cards: counted, or written down packet by packet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from insula.errors import HostLacks, InsulaError, NotFound
from insula.model.lifecycle import check_transition
from insula.model.network import format_rule
from insula.model.network_requests import CaptureTraffic, ShowTraffic
from insula.model.status import TrafficStatus
from insula.model.streams import Streams
from insula.operations.cards import has_fabric
from insula.operations.context import Context
from insula.operations.hold import status_of
from insula.operations.observe import is_alive
from insula.operations.operation import Operation
from insula.store.machines import MachineRecord, machine_folder, machine_names, read_machine


def show(context: Context, request: ShowTraffic, operation: Operation) -> list[TrafficStatus]:
    """Counters of the machines named, or of all that run. Raises NotFound."""
    del operation
    folders = [machine_folder(context.home, name) for name in request.names]
    if not request.names:
        folders = [context.home.machine(name) for name in machine_names(context.home)]
    return passed(context, folders)


def passed(context: Context, folders: Iterable[Path]) -> list[TrafficStatus]:
    """What passed the cards of machines, as far as they hang. Raises HostLacks."""
    if not has_fabric(context):
        return []
    from insula.networks.counted import status
    from insula.networks.peers import rule_counter

    counted = status(context.home).cards
    found = []
    for folder in folders:
        with contextlib.suppress(InsulaError, OSError):
            record = read_machine(folder)
            called = {rule_counter(rule): format_rule(rule) for rule in record.firewall.rules}
            for nic, network in zip(record.nics, record.spec.networks, strict=False) if is_alive(folder) else ():
                if (counters := counted.get(nic.key)) is not None:
                    found.append(
                        TrafficStatus(
                            folder.name, network, nic.mac, counters.received_bytes, counters.sent_bytes,
                            counters.received_packets, counters.sent_packets,
                            counters.received_dropped + counters.sent_dropped,
                            {called.get(name, name): packets for name, (packets, _) in counters.counters.items()},
                        )
                    )  # fmt: skip
    return found


def capture(context: Context, request: CaptureTraffic, operation: Operation, streams: Streams) -> None:
    """Write a pcap stream of one card to ``streams`` until they close or the machine ends.

    Raises NotFound, WrongState (it does not run), HostLacks.
    """
    from insula.networks.capture import capture_to

    folder = machine_folder(context.home, request.name)
    status = status_of(folder)
    check_transition(request.name, "capture", status.state, status.problem)
    record = read_machine(folder)
    key, network = _card(record, folder, request.network)
    if not has_fabric(context):
        raise HostLacks("what a passt carries cannot be captured", code="no_fabric", hint="see what is missing: insula doctor")
    operation.tell(f"write what passes its card on {network}, until Ctrl-C")
    capture_to(context.home, key, streams.stdout, lambda: is_alive(folder))


def _card(record: MachineRecord, folder: Path, network: str) -> tuple[str, str]:
    """The card's key, and the network that it is on."""
    for nic, name in zip(record.nics, record.spec.networks, strict=False):
        if not network or name == network:
            return nic.key, name
    raise NotFound(f"{folder.name} is not on {network}" if network else f"{folder.name} has no network card", code="not_attached")
