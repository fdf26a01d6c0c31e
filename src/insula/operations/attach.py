"""Cards: put a machine on a network and take it off, pull its cable, limit it; at once when it runs."""

from __future__ import annotations

import msgspec

from insula.errors import AlreadyExists, HostLacks, NotFound, WrongState
from insula.model.identity import new_mac
from insula.model.network import Nic, Rates
from insula.model.network_requests import AttachNetwork, DetachNetwork, LimitNetwork, SetLink
from insula.model.spec import MOST_NETWORKS
from insula.model.status import MachineStatus, State
from insula.operations.addressing import introduce
from insula.operations.cabling import change_cards, check_holds, take_off
from insula.operations.cards import Card, free_slot, has_fabric, new_card, new_key, with_nics
from insula.operations.context import Context
from insula.operations.hold import Held, hold_machine, noted, status_of
from insula.operations.operation import Operation, Steps
from insula.operations.rewire import plug
from insula.store import names
from insula.store.events import append_event
from insula.store.machines import MachineRecord, write_machine
from insula.store.networks import release_card


def attach(context: Context, request: AttachNetwork, operation: Operation) -> MachineStatus:
    """Give a machine a card on a network. Raises NotFound, AlreadyExists, HostLacks, WrongState; then it is as it was."""
    with hold_machine(context, request.name, "network attach") as held:
        record = held.record
        if request.network in record.spec.networks:
            raise AlreadyExists(f"{request.name} is on {request.network} already", code="attached_already")
        if len(record.nics) >= MOST_NETWORKS:
            raise WrongState(
                f"{request.name} has {MOST_NETWORKS} network cards, which is all it can have", code="too_many_devices"
            )
        if not has_fabric(context):
            raise HostLacks("this host can make no network to attach to", code="no_fabric", hint="run: insula doctor")
        card = Card(new_key(), new_mac(), free_slot(record.nics))
        with noted(held, "attach", takes_back=True):
            with Steps(operation) as steps:
                steps.undo(lambda: release_card(context.home, request.network, card.mac))
                nic = new_card(context, record.id, request.network, card, fabric=True, address=request.address)
                check_holds(context, nic, record.firewall)
                after = _with(record, [*record.nics, nic], (*record.spec.networks, request.network))
                write_machine(held.folder, after)
                steps.undo(lambda: write_machine(held.folder, record))
                if held.status.state.has_process:
                    steps.begin("plug the card in")
                    steps.undo(lambda: take_off(context.home, nic))
                    steps.undo(lambda: context.engine.pull(held.folder / names.RUN, nic.slot))
                    plug(context, held.folder, after, nic)
            if held.status.state is State.RUNNING and held.status.agent:
                introduce(context, held.folder, after)
        append_event(held.folder, "attached", network=request.network)
        return status_of(held.folder)


def detach(context: Context, request: DetachNetwork, operation: Operation) -> MachineStatus:
    """Take a machine's card off a network. Raises NotFound, GuestError (``card_in_use``); then it is as it was."""
    with hold_machine(context, request.name, "network detach") as held:
        nic = _card_on(context, held, request.network)
        index = held.record.nics.index(nic)
        kept = [each for each in held.record.nics if each is not nic]
        networks = tuple(name for place, name in enumerate(held.record.spec.networks) if place != index)
        with noted(held, "detach", takes_back=True):
            if held.status.state.has_process:
                operation.tell("pull the card out")
                context.engine.pull(held.folder / names.RUN, nic.slot)
            write_machine(held.folder, _with(held.record, kept, networks))
            take_off(context.home, nic)
            release_card(context.home, request.network, nic.mac)
        append_event(held.folder, "detached", network=request.network)
        return status_of(held.folder)


def set_link(context: Context, request: SetLink, operation: Operation) -> MachineStatus:
    """Plug or pull cables, now and for later starts. Raises NotFound."""
    del operation
    with hold_machine(context, request.name, "network link") as held:
        chosen = _cards(context, held, request.network)
        with noted(held, "network link"):
            after = _replace(
                held, [msgspec.structs.replace(nic, up=request.up) if nic in chosen else nic for nic in held.record.nics]
            )
            if held.status.state.has_process:
                for nic in chosen:
                    context.engine.set_link(held.folder / names.RUN, nic.slot, request.up)
                change_cards(context, request.name, after)
        return status_of(held.folder)


def limit(context: Context, request: LimitNetwork, operation: Operation) -> MachineStatus:
    """Limit what cards may send and receive, now and from now on. Raises NotFound, HostLacks."""
    del operation
    with hold_machine(context, request.name, "network limit") as held:
        chosen = _cards(context, held, request.network)
        limited = {nic.key: msgspec.structs.replace(nic, rates=_rates(nic.rates, request)) for nic in chosen}
        for nic in limited.values():
            check_holds(context, nic, held.record.firewall)
        with noted(held, "network limit"):
            after = _replace(held, [limited.get(nic.key, nic) for nic in held.record.nics])
            if held.status.state.has_process:
                change_cards(context, request.name, after)
        return status_of(held.folder)


def _rates(former: Rates, request: LimitNetwork) -> Rates:
    up = former.up if request.up is None else request.up
    return Rates(up, former.down if request.down is None else request.down)


def _replace(held: Held, nics: list[Nic]) -> MachineRecord:
    after = msgspec.structs.replace(held.record, nics=nics)
    write_machine(held.folder, after)
    return after


def _with(record: MachineRecord, nics: list[Nic], networks: tuple[str, ...]) -> MachineRecord:
    return msgspec.structs.replace(with_nics(record, nics), spec=msgspec.structs.replace(record.spec, networks=networks))


def _cards(context: Context, held: Held, network: str) -> list[Nic]:
    """The card on ``network``, or all. Raises NotFound when there is none."""
    if network:
        return [_card_on(context, held, network)]
    if not held.record.nics:
        raise NotFound(f"{held.folder.name} has no network card", code="not_attached")
    return list(held.record.nics)


def _card_on(context: Context, held: Held, network: str) -> Nic:
    from insula.store.networks import find_network

    _, wanted = find_network(context.home, network)
    for nic in held.record.nics:
        if nic.network == wanted.id:
            return nic
    there = ", ".join(held.record.spec.networks)
    raise NotFound(
        f"{held.folder.name} is not on {network}",
        code="not_attached",
        hint=f"it is on: {there}" if there else "it is on no network",
    )
