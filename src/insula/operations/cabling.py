"""Cabling: what a machine's network cards hang on.

A card gets a key, a MAC and addresses once, when its machine is made (cards.py); each life of the machine hangs it on the
fabric (`cabled`), and the end of that life takes it off (`uncable`). Where this host can make no fabric, a card on a NAT network
has a passt of its own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from insula.errors import HostLacks, InsulaError
from insula.model.limits import narrower
from insula.operations.cards import has_fabric, network_name, network_of
from insula.operations.context import Context
from insula.store.machines import MachineRecord
from insula.store.names import Home

if TYPE_CHECKING:
    from insula.engines.base import NicPlan
    from insula.model.network import Firewall, Nic
    from insula.networks.plan import Attached
    from insula.operations.hanging import Hanging


@contextlib.contextmanager
def cabled(
    context: Context, name: str, record: MachineRecord, *, standby: bool = False, later: list[Hanging] | None = None
) -> Iterator[tuple[NicPlan, ...]]:
    """The cards of the machine ``name`` as the engine is to make them, on their way onto the fabric: on leaving the context they
    hang there, or are put into ``later``, to be waited for before their cables are plugged in. Taken off again when this fails.
    With ``standby`` nothing passes them until `replace_cards`.

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
                    tap = stand_by(context.home, attached(context.home, name, record, nic))
                else:
                    coming.append(Hanging(context.home, attached(context.home, name, record, nic)))
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
