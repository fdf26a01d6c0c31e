"""Which network cards a machine has, and with which addresses: new ones, a fork's, former ones. cabling.py hangs them up."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from insula.errors import AlreadyExists, HostLacks, InsulaError, NotFound, UsageError
from insula.model.identity import new_mac
from insula.model.spec import DEFAULT_NETWORK
from insula.operations.context import Context
from insula.store.machines import BoardRecord, MachineRecord, write_machine
from insula.store.names import Home

if TYPE_CHECKING:
    from insula.model.network import Inner, Nic
    from insula.store.networks import NetworkRecord
    from insula.store.snapshots import SnapshotRecord


def has_fabric(context: Context) -> bool:
    """Whether networks are the kernel's here, as root or without; not so, each machine has a passt."""
    if not context.engine.features.taps:
        return False
    from insula.networks.ability import probe

    return probe(context.home).kind != "none"


def choose_board(context: Context, arch: str, former: BoardRecord | None = None) -> BoardRecord:
    """The board of a machine's next start: as the engine chooses, with cards that fit the networks of this host."""
    return msgspec.structs.replace(context.engine.choose_board(arch, former), offloads=has_fabric(context))


def wired(context: Context, folder: Path, record: MachineRecord) -> MachineRecord:
    """The record `with_cards` of a machine that boots, written down when that is new. Raises as that."""
    carded = with_cards(context, without_inner(record))
    if carded.nics != record.nics:
        write_machine(folder, carded)
    return carded


def with_cards(
    context: Context, record: MachineRecord, slots: Sequence[int] = (), addresses: Sequence[str] = ()
) -> MachineRecord:
    """The record with a card for each network of its spec, each with addresses where we give them.

    ``slots``: where on the board the cards are in the state that it goes on from; ``addresses``: those wanted, where any are.
    Raises NotFound (no such network), HostLacks (``subnet_full``).
    """
    if not record.spec.networks:
        return msgspec.structs.replace(record, nics=[]) if record.nics else record
    from insula.networks.passt import is_on_passt

    fabric = has_fabric(context)
    nics = record.nics[: len(record.spec.networks)]
    for index, name in enumerate(record.spec.networks):
        former = nics[index] if index < len(nics) else None
        if former is None or is_on_passt(former) is fabric:
            slot = former.slot if former else slots[index] if slots else free_slot(nics)
            mac = former.mac if former else record.identity.mac if index == 0 else new_mac()
            card = Card(former.key if former else new_key(), mac, slot)
            address = addresses[index] if index < len(addresses) else ""
            nics[index : index + 1] = [new_card(context, record.id, name, card, fabric=fabric, address=address)]
    return with_nics(record, nics)


def with_inner(context: Context, record: MachineRecord, state: SnapshotRecord) -> MachineRecord:
    """The record of a fork of ``state`` whose guest cannot be told who it is: on its networks it is another one than it takes
    itself for."""
    former = {nic.slot: nic for nic in state.nics}
    nics = [msgspec.structs.replace(nic, inner=_inner(context.home, former.get(nic.slot))) for nic in record.nics]
    return msgspec.structs.replace(record, nics=nics)


def _inner(home: Home, former: Nic | None) -> Inner | None:
    if former is None or former.inner is not None:
        return former.inner if former else None
    from insula.model.network import Inner
    from insula.networks.naming import bridge_mac
    from insula.networks.passt import is_on_passt
    from insula.networks.plan import gateway4

    try:
        spec = network_of(home, former).spec
    except NotFound:
        return None
    gateway = gateway4(spec)
    if former.ipv4 is None or gateway is None or spec.ipv4 is None or is_on_passt(former):
        return None
    return Inner(f"{former.ipv4}/{spec.ipv4.rpartition('/')[2]}", gateway, former.mac, bridge_mac(former.network))


def like_before(record: MachineRecord, state: SnapshotRecord) -> MachineRecord:
    """The record of a fork whose cards are limited and plugged in as those of the machine it was."""
    former = {nic.slot: nic for nic in state.nics}
    nics = [
        msgspec.structs.replace(nic, rates=before.rates, up=before.up) if (before := former.get(nic.slot)) else nic
        for nic in record.nics
    ]
    return msgspec.structs.replace(record, nics=nics)


def without_inner(record: MachineRecord) -> MachineRecord:
    """The record of a machine that boots: its guest learns who it is."""
    if not any(nic.inner for nic in record.nics):
        return record
    return msgspec.structs.replace(record, nics=[msgspec.structs.replace(nic, inner=None) for nic in record.nics])


def with_nics(record: MachineRecord, nics: list[Nic]) -> MachineRecord:
    """The record with these cards, and their MACs in its identity."""
    more_macs = tuple(nic.mac for nic in nics[1:])
    identity = msgspec.structs.replace(record.identity, mac=nics[0].mac if nics else record.identity.mac, more_macs=more_macs)
    return msgspec.structs.replace(record, nics=nics, identity=identity)


def free_slot(nics: Sequence[Nic]) -> int:
    """The first place for a card on the board that none of ``nics`` has."""
    return min(set(range(len(nics) + 1)) - {nic.slot for nic in nics})


class Card(NamedTuple):
    """What a card is, whatever network it is on."""

    key: str
    mac: str
    slot: int


def new_card(context: Context, machine_id: str, name: str, card: Card, *, fabric: bool, address: str = "") -> Nic:
    """A card on the network ``name``, with addresses there. Raises NotFound, HostLacks, AlreadyExists (``address_taken``),
    UsageError (``bad_address``)."""
    from insula.model.network import Nic
    from insula.networks.passt import ADDRESS
    from insula.store.networks import check_wanted, claim_address

    network = network_named(context.home, name)
    ipv4: str | None = ADDRESS
    ipv6: str | None = None
    if fabric:
        claim = claim_address(context.home, name, machine_id, card.key, card.mac, address)
        ipv4, ipv6 = claim.ipv4 or None, claim.ipv6 or None
    elif address:
        check_wanted(name, network.spec, address)
        raise HostLacks(
            f"no address can be chosen on '{name}': this host can make no networks, and each machine is alone behind a passt",
            code="no_fabric",
            hint="see what is missing: insula doctor",
        )
    return Nic(key=card.key, network=network.id, mac=card.mac, ipv4=ipv4, ipv6=ipv6, fixed=bool(address), slot=card.slot)


def network_named(home: Home, name: str) -> NetworkRecord:
    """The network ``name``; the default one is made when it is first asked for. Raises NotFound."""
    from insula.store.networks import default_network, find_network

    try:
        return find_network(home, name)[1]
    except NotFound:
        if name != DEFAULT_NETWORK:
            raise
    from insula.host.links import routes
    from insula.networks.naming import home_key, host_link

    return default_network(home, routes(except_link=host_link(home_key(home.root))))[1]


def new_key() -> str:
    return os.urandom(4).hex()


def slots_of(state: SnapshotRecord) -> list[int]:
    """The cards' places on the board of a saved state; one that an earlier version wrote has none, or one on the first."""
    return [nic.slot for nic in state.nics] or list(range(len(state.spec.networks)))


def with_restored_cards(context: Context, record: MachineRecord, state: SnapshotRecord) -> MachineRecord:
    """The record of a machine that goes back to ``state``, with the cards its guest knows, and the addresses they have now. They
    hang beside those of the guest that still runs, so they have keys of their own.

    Raises as `with_cards`.
    """
    if not state.spec.networks:
        return msgspec.structs.replace(record, nics=[])
    fabric, stranger = has_fabric(context), state.former(record.identity) is not None
    left, found = list(record.nics), []
    for index, (name, slot) in enumerate(zip(state.spec.networks, slots_of(state), strict=False)):
        network, mac = network_named(context.home, name).id, state.identity.macs[index]
        # A guest that comes back under its own identity is told no other MAC; one that is somebody else here is.
        nic = next((nic for nic in left if nic.network == network and (stranger or nic.mac == mac)), None)
        if nic is not None:
            left.remove(nic)
        else:
            card = Card(new_key(), new_mac() if stranger else mac, slot)
            former = state.nics[index].ipv4 if index < len(state.nics) else None
            nic = _taken_up_again(context, record.id, name, card, former, fabric=fabric)
        inner = state.nics[index].inner if index < len(state.nics) else None
        found.append(msgspec.structs.replace(nic, key=new_key(), slot=slot, inner=inner))
    return with_cards(context, with_nics(record, found))


def release_former(home: Home, former: MachineRecord, record: MachineRecord) -> None:
    """Give back the addresses of cards that a machine had and has no more."""
    from insula.store.networks import release_card

    kept = {(nic.network, nic.mac) for nic in record.nics}
    for nic in former.nics:
        if (nic.network, nic.mac) not in kept:
            with contextlib.suppress(InsulaError):
                release_card(home, network_name(home, nic), nic.mac)


def are_elsewhere(record: MachineRecord, state: SnapshotRecord) -> bool:
    """Whether a machine's cards have other addresses than its guest in ``state`` believes."""
    return [(nic.ipv4, nic.ipv6) for nic in record.nics] != [(nic.ipv4, nic.ipv6) for nic in state.nics]


def _taken_up_again(context: Context, machine_id: str, name: str, card: Card, address: str | None, *, fabric: bool) -> Nic:
    """A card on a network that its machine was on once, with the address it had there if nobody has it now."""
    with contextlib.suppress(AlreadyExists, UsageError):
        return new_card(context, machine_id, name, card, fabric=fabric, address=address or "")
    return new_card(context, machine_id, name, card, fabric=fabric)


def network_of(home: Home, nic: Nic) -> NetworkRecord:
    """Raises NotFound when the card's network is gone."""
    from insula.store.networks import network_by_id

    return network_by_id(home, nic.network)[1]


def network_name(home: Home, nic: Nic) -> str:
    """Raises NotFound when the card's network is gone."""
    from insula.store.networks import network_by_id

    return network_by_id(home, nic.network)[0]
