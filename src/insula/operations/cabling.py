"""Cabling: what a machine's network cards hang on.

A card gets a key, a MAC and addresses once, when its machine is made (`with_cards`); each life of the machine hangs it on the
fabric (`cabled`), and the end of that life takes it off (`uncable`). Where this host can make no fabric, a card on a NAT network
has a passt of its own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from insula.errors import AlreadyExists, HostLacks, InsulaError, NotFound, UsageError
from insula.model.identity import new_mac
from insula.model.limits import narrower
from insula.model.spec import DEFAULT_NETWORK
from insula.operations.context import Context
from insula.store.machines import BoardRecord, MachineRecord, write_machine
from insula.store.names import Home

if TYPE_CHECKING:
    from insula.engines.base import NicPlan
    from insula.model.network import Firewall, Inner, Nic
    from insula.networks.plan import Attached
    from insula.operations.hanging import Hanging
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


@contextlib.contextmanager
def cabled(
    context: Context, folder: Path, record: MachineRecord, *, standby: bool = False, later: list[Hanging] | None = None
) -> Iterator[tuple[NicPlan, ...]]:
    """The cards as the engine is to make them, on their way onto the fabric: on leaving the context they hang there, or are put
    into ``later``, to be waited for before their cables are plugged in. Taken off again when this fails. With ``standby`` nothing
    passes them until `replace_cards`.

    Raises HostLacks (``no_fabric``, ``network_failed`` …), also on leaving.
    """
    if not record.nics:
        yield ()
        return
    from insula.engines.base import NicPlan
    from insula.networks.fabric import stand_by
    from insula.operations.hanging import Hanging

    fabric = has_fabric(context)
    with contextlib.ExitStack() as undo, contextlib.ExitStack() as opened:
        plans, coming = [], []
        for nic in record.nics:
            tap = None
            check_holds(context, narrowed(record, nic), record.firewall)
            if fabric:
                undo.callback(take_off, context.home, nic)
                if standby:
                    tap = stand_by(context.home, attached(context.home, folder.name, record, nic))
                else:
                    coming.append(Hanging(context.home, attached(context.home, folder.name, record, nic)))
                    undo.callback(coming[-1].join)
                    tap = coming[-1].tap
                opened.callback(os.close, tap)
            else:
                _check_passt(context.home, nic)
            plans.append(NicPlan(nic.mac, tap, nic.slot))
        try:
            yield tuple(plans)
        except InsulaError:
            await_cards(coming)  # a tap that went again is why QEMU did not start with it: that is to be told
            raise
        if later is None:
            await_cards(coming)
        else:
            later += coming
        undo.pop_all()


def await_cards(coming: Sequence[Hanging]) -> None:
    """Return when they hang. Raises as `cabled`."""
    for each in coming:
        each.wait()


def hang(home: Home, name: str, record: MachineRecord, nic: Nic) -> int:
    """Hang one card on its network; the descriptor of its tap is the caller's. See `cabled`."""
    from insula.networks.fabric import attach

    return attach(home, attached(home, name, record, nic))


def replace_cards(context: Context, name: str, former: MachineRecord, record: MachineRecord) -> None:
    """Let the cards that stood by take part in their networks, in the places of those the machine had."""
    if not has_fabric(context):
        return
    from insula.networks.fabric import replace

    left = list(former.nics)
    for nic in record.nics:
        before = next((each for each in left if (each.network, each.ipv4) == (nic.network, nic.ipv4)), None)
        if before is not None:
            left.remove(before)
        replace(context.home, before.key if before else "", attached(context.home, name, record, nic))
    for nic in left:
        take_off(context.home, nic)


def change_cards(context: Context, name: str, record: MachineRecord) -> None:
    """Let networks know of another name, firewall, rates or cables of a machine whose cards hang there. Raises HostLacks."""
    if not record.nics or not has_fabric(context):
        return
    from insula.networks.fabric import change

    for nic in record.nics:
        change(context.home, attached(context.home, name, record, nic))


def attached(home: Home, name: str, record: MachineRecord, nic: Nic) -> Attached:
    """All that a network needs to know of the card ``nic`` of the machine ``name``."""
    from insula.networks.plan import Attached, Segment

    inner = nic.inner
    segment = Segment(inner.address, inner.gateway, inner.mac, inner.gateway_mac) if inner else None
    return Attached(
        nic=narrowed(record, nic),
        machine=name,
        machine_id=record.id,
        network=network_of(home, nic).spec,
        firewall=record.firewall,
        segment=segment,
    )


def network_of(home: Home, nic: Nic) -> NetworkRecord:
    """Raises NotFound when the card's network is gone."""
    from insula.store.networks import network_by_id

    return network_by_id(home, nic.network)[1]


def narrowed(record: MachineRecord, nic: Nic) -> Nic:
    """The card as its network is to hold it: to its own rates and those of its machine."""
    rates = narrower(nic.rates, record.limits.net)
    return nic if rates == nic.rates else msgspec.structs.replace(nic, rates=rates)


def check_holds(context: Context, nic: Nic, firewall: Firewall) -> None:
    """Raises HostLacks (``no_firewall``) when nobody would enforce what is asked for a card: an open one is worse than none."""
    from insula.model.network import Firewall, Rates
    from insula.networks.lan import is_bare

    if firewall == Firewall() and nic.rates == Rates():
        return
    spec = network_of(context.home, nic).spec
    if not has_fabric(context) or is_bare(nic.network, spec):
        raise HostLacks(
            f"nobody would hold a machine to its firewall and limits on '{network_name(context.home, nic)}'",
            code="no_firewall",
            hint="use a private or NAT network, or one bridged over a bridge of this host; see also: insula doctor",
        )


def network_name(home: Home, nic: Nic) -> str:
    """Raises NotFound when the card's network is gone."""
    from insula.store.networks import network_by_id

    return network_by_id(home, nic.network)[0]


def attached_keys(context: Context) -> set[str]:
    """The keys of all cards that hang on networks; without a fabric, of all there could be."""
    from insula.networks.ground import attached_cards

    return set(attached_cards(context.home))


def _check_passt(home: Home, nic: Nic) -> None:
    from insula.networks.ability import probe

    network = network_of(home, nic)
    if network.spec.mode != "nat":
        raise HostLacks(
            f"this host can make no {network.spec.mode} network: {probe(home).why}",
            code="no_fabric",
            hint="see what is missing: insula doctor; a NAT network works without",
        )


def uncable(home: Home, record: MachineRecord) -> None:
    """Take the machine's cards off their networks, also those of a verb that died over it; its published ports end with them.
    Doing it twice does nothing."""
    uncable_all(home, record.id, {nic.key for nic in record.nics})


def uncable_all(home: Home, machine_id: str, keys: Collection[str] = ()) -> None:
    """As `uncable`, for the machine with this id, of which there may be nothing else any more. ``keys``: of cards it had."""
    if not home.fabric.exists():
        return
    found = set(keys)
    with contextlib.suppress(InsulaError, OSError):
        found |= hanging_keys(home, machine_id)
    for key in sorted(found):
        _detach(home, key)


def hanging_keys(home: Home, machine_id: str) -> set[str]:
    """The keys of cards that hang, or stand by, for a machine."""
    from insula.networks.ground import attached_cards, standing_cards

    there = (attached_cards(home), standing_cards(home))
    return {key for cards in there for key, card in cards.items() if card.machine_id == machine_id}


def take_off(home: Home, nic: Nic) -> None:
    """Take one card off its network, if it hangs there."""
    _detach(home, nic.key)


def _detach(home: Home, key: str) -> None:
    from insula.networks.fabric import detach

    with contextlib.suppress(InsulaError, OSError):
        detach(home, key)


def plug_cables(context: Context, run: Path, record: MachineRecord) -> None:
    """Plug in the cables of a machine's cards, but those that were pulled on purpose."""
    if all(nic.up for nic in record.nics):
        context.engine.set_links(run, True)
        return
    for nic in record.nics:
        context.engine.set_link(run, nic.slot, nic.up)


def inner_addresses(home: Home, nic: Nic) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """What the guest is to set its card to: addresses with their prefix, gateways, name servers. Nothing on a network whose
    addresses are not ours."""
    if nic.ipv4 is None:
        return (), (), ()
    from insula.networks.passt import ADDRESS, GATEWAY, PREFIX, RESOLVER, is_on_passt

    if is_on_passt(nic):
        return (f"{ADDRESS}/{PREFIX}",), (GATEWAY,), (RESOLVER,)
    from insula.networks.plan import gateway4

    spec = network_of(home, nic).spec
    own = tuple(
        f"{ip}/{subnet.rpartition('/')[2]}" for ip, subnet in ((nic.ipv4, spec.ipv4), (nic.ipv6, spec.ipv6)) if ip and subnet
    )
    gateway = gateway4(spec)
    assert gateway is not None
    return own, (gateway,) if spec.mode == "nat" else (), (gateway,)  # ways out by IPv6 are announced, where there are any
