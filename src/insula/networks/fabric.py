"""The fabric of a home: networks that are in use, as the kernel has them. What `plan`, `rules` and `dns` say is made so here.

It begins with the first card that is attached and ends with the last one's detaching. Everything it is made of follows from the
files in ``fabric/``: ``state.json`` (its uplink) and ``nics/KEY.json`` (each card); they are written before, and removed after,
what they stand for is there. So whatever died half-way, `repair` puts right.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Final

from insula.errors import HostLacks, InsulaError, MachineEnded, NotFound
from insula.host import links, nft
from insula.host.together import together
from insula.model.network import NetworkSpec
from insula.networks import announce, forwarders, lan, lone, naming, plan, relay, rules, uplinks
from insula.networks import names as dnsmasq
from insula.networks.ground import (
    Fabric,
    attached_cards,
    card_file,
    cards_inside,
    locked,
    opened,
    standing_cards,
    standing_file,
)
from insula.networks.plan import Attached
from insula.networks.raising import card_links, end, lay, mend, raised, shape, started, write_names
from insula.store import names
from insula.store.records import write_record

_ALL_FRAMES: Final = 3  # ETH_P_ALL of linux/if_ether.h


def attach(home: names.Home, attached: Attached, opened: Callable[[int], None] | None = None) -> int:
    """Hang a card into its network, making what is missing of network and fabric; the descriptor for QEMU.

    Frames have virtio's header before them. ``opened`` is called with the descriptor, which is the caller's from then on, as soon
    as there is one: nothing passes it yet. Raises HostLacks, or NotFound (``parent_missing``); then the card is not attached.
    """
    with locked(home):
        if lan.is_direct(attached):
            write_record(card_file(home, attached.nic.key), attached)
            try:
                return lan.open_macvtap(attached)
            except BaseException:
                _forget(home, attached)
                raise
        with raised(home) as fabric:
            try:
                return _attach(fabric, attached, opened)
            except BaseException:
                with contextlib.suppress(InsulaError):
                    _detach(fabric, attached)
                raise


def _attach(fabric: Fabric, attached: Attached, opened: Callable[[int], None] | None = None) -> int:
    key = attached.nic.key
    write_record(card_file(fabric.home, key), attached)
    tap = _open_tap(fabric, attached)
    if opened is not None:
        opened(tap)
    try:
        _connect(fabric, attached)
    except BaseException:
        if opened is None:
            os.close(tap)
        raise
    return tap


def _connect(fabric: Fabric, attached: Attached) -> None:
    """Hang up a card whose tap is there."""
    key, network, spec = attached.nic.key, attached.nic.network, attached.network
    former = fabric.cards.get(key)
    known = network in fabric.networks()
    if not known:
        uplinks.refuse_taken(fabric.key, fabric.state, spec)
    fabric.cards[key] = attached
    if spec.mode == "bridge" and not (known and lan.is_joined(network)):
        lan.join(network, spec, fabric.holder.spaces)
    folder = fabric.network_folder(network)
    changed = False
    if dnsmasq.has_names(spec):
        changed = write_names(fabric, network, spec)
        dnsmasq.write_card(folder, attached)
    batch = ([] if known else plan.network_links(network, spec)) + card_links(attached)
    commands = ([] if known else rules.network_rules(network, spec)) + rules.nic_rules(attached, former)
    if fabric.bare:
        lay(fabric, commands, batch)
    else:
        together(
            lambda: links.apply("ip", batch, fabric.holder.spaces, tolerated=links.THERE),
            lambda: nft.apply(commands, fabric.holder.spaces),
            lambda: None if known else _offer(fabric, network, spec),
        )
    if attached.nic.rates.up or attached.nic.rates.down:
        shape(fabric, attached)
    if spec.mode == "nat":
        relay.ensure(fabric)
    if dnsmasq.has_names(spec):
        running = dnsmasq.child_name(network) in fabric.running
        if changed or not running:
            dnsmasq.start(fabric.holder, folder, network, running=running)
        _tell_servers(fabric, attached)
        announce.announce(fabric, attached)


def _offer(fabric: Fabric, network: str, spec: NetworkSpec) -> None:
    uplinks.offer(fabric.key, fabric.state, spec, [there for name, there in fabric.networks().items() if name != network])


def _tell_servers(fabric: Fabric, attached: Attached) -> None:
    """Servers of a machine's other networks may have to answer otherwise now that it asks one more."""
    others = {card.nic.network: card.network for card in fabric.cards.values() if card.machine_id == attached.machine_id}
    for network, spec in others.items():
        if network != attached.nic.network and dnsmasq.has_names(spec) and write_names(fabric, network, spec):
            running = dnsmasq.child_name(network) in fabric.holder.children()
            dnsmasq.start(fabric.holder, fabric.network_folder(network), network, running=running)


# -- one card in another's place -----------------------------------------------------------------------------------------------


def stand_by(home: names.Home, attached: Attached) -> int:
    """The descriptor of a card's tap that leads nowhere until `replace`. The card it is to replace must hang meanwhile.

    Raises HostLacks.
    """
    with locked(home):
        write_record(standing_file(home, attached.nic.key), attached)
        if lan.is_direct(attached):
            return lan.open_macvtap(attached, stands_by=True)
        with raised(home) as fabric:
            if fabric.bare:
                lay(fabric)
            return _open_tap(fabric, attached)


def _open_tap(fabric: Fabric, attached: Attached) -> int:
    if lone.is_lone(attached):
        return lone.open_tap(fabric, attached)
    return fabric.holder.tap(naming.tap_name(attached.nic.key))


def replace(home: names.Home, former: str, attached: Attached) -> None:
    """Hang a card that stood by in the place of the card with the key ``former``, which goes.

    Raises HostLacks, NotFound, MachineEnded when the QEMU that has its tap did.
    """
    with locked(home):
        there = attached_cards(home).get(former)
        standing_file(home, attached.nic.key).unlink(missing_ok=True)
        if lan.is_direct(attached):
            if there is not None:
                _forget(home, there)
            write_record(card_file(home, attached.nic.key), attached)
            lan.take_part(attached)
            return
        with raised(home) as fabric:
            if fabric.bare:
                lay(fabric)
            if there is not None:
                fabric.cards[attached.nic.key] = attached  # so that neither fabric nor network end with the last of its cards
                _detach(fabric, there)
                if attached.nic.network != there.nic.network:
                    del fabric.cards[attached.nic.key]  # else its network is there, and need not be made
            write_record(card_file(home, attached.nic.key), attached)
            try:
                _connect(fabric, attached)
            except HostLacks:
                if naming.tap_name(attached.nic.key) in links.counters(fabric.holder.spaces):
                    raise
                raise MachineEnded("the machine ended before its card hung", code="machine_ended") from None


def detach(home: names.Home, key: str) -> None:
    """Take a card off; nothing happens when it is not attached. The last one ends the fabric."""
    if not home.fabric.exists():
        return
    with locked(home):
        _detach_any(home, key)
        if not cards_inside(home) and not standing_cards(home) and (home.fabric / names.FABRIC_STATE).exists():
            with started(home) as (fabric, _):  # its holder died: what it left goes now
                end(home, fabric.key, fabric.holder)


def _detach_any(home: names.Home, key: str) -> None:
    with opened(home) as fabric:
        if (standing := standing_cards(home).get(key)) is not None:
            _forget_standing(home, standing)
        attached = attached_cards(home).get(key)
        if attached is None:
            return
        if fabric is None or lan.is_direct(attached):
            _forget(home, attached)
            return
        _detach(fabric, attached)
        for lost in _lost(fabric) if fabric.cards else ():
            _detach(fabric, lost)
        if fabric.cards:
            _sweep_standing(fabric)


def _forget_standing(home: names.Home, attached: Attached) -> None:
    if lone.is_lone(attached):
        lone.end(home, attached.nic.key)
    lan.remove(attached)
    standing_file(home, attached.nic.key).unlink(missing_ok=True)


def _lost(fabric: Fabric) -> list[Attached]:
    """Cards whose QEMU is gone: their machine's end was not told, because whoever should have was killed."""
    present = links.counters(fabric.holder.spaces)
    return [card for key, card in fabric.cards.items() if not lan.is_direct(card) and naming.tap_name(key) not in present]


def _sweep_standing(fabric: Fabric) -> None:
    present = links.counters(fabric.holder.spaces)
    for key, card in standing_cards(fabric.home).items():
        if not lan.is_direct(card) and naming.tap_name(key) not in present:
            _forget_standing(fabric.home, card)


def _forget(home: names.Home, attached: Attached) -> None:
    lan.remove(attached)
    card_file(home, attached.nic.key).unlink(missing_ok=True)


def _detach(fabric: Fabric, attached: Attached) -> None:
    key, network, spec = attached.nic.key, attached.nic.network, attached.network
    fabric.cards.pop(key, None)
    forwarders.end_of_card(fabric, key)
    lone.end(fabric.home, key)
    if not fabric.cards and not standing_cards(fabric.home):
        end(fabric.home, fabric.key, fabric.holder)
        card_file(fabric.home, key).unlink(missing_ok=True)
        return
    last = network not in fabric.networks()
    gone = [f"link delete dev {naming.tap_name(key)}", *plan.drop_shaping_links(key)]
    commands = rules.drop_nic_rules(attached)
    if last:
        gone += plan.drop_network_links(network)
        commands += rules.drop_network_rules(network, spec)
    links.apply("ip", gone, fabric.holder.spaces, tolerated=links.GONE)
    nft.apply(commands, fabric.holder.spaces)
    folder = fabric.network_folder(network)
    if last:
        dnsmasq.end(fabric.holder, folder, network)
        lan.leave(network, spec)
        uplinks.withdraw(fabric.key, fabric.state, spec, fabric.networks().values())
    elif dnsmasq.has_names(spec):
        dnsmasq.drop_card(folder, key)
        _tell_names(fabric, network, spec)
    card_file(fabric.home, key).unlink(missing_ok=True)


def change(home: names.Home, attached: Attached) -> None:
    """Make a card's firewall, rates, link, name and addresses as in ``attached``, in one instant each.

    Raises NotFound (``not_attached``), HostLacks.
    """
    key, network, spec = attached.nic.key, attached.nic.network, attached.network
    if lan.is_direct(attached):
        with locked(home):
            _change_direct(home, attached)
        return
    with locked(home), opened(home) as fabric:
        former = fabric.cards.get(key) if fabric is not None else None
        if fabric is None or former is None:
            raise NotFound(f"the card {key} hangs in no network now", code="not_attached", hint="run: insula network repair")
        fabric.cards[key] = attached
        write_record(card_file(home, key), attached)
        nft.apply(rules.nic_rules(attached, former), fabric.holder.spaces)
        if former.nic.up != attached.nic.up:
            state = "up" if attached.nic.up else "down"
            links.apply("ip", [f"link set dev {naming.tap_name(key)} {state}"], fabric.holder.spaces)
        if former.nic.rates != attached.nic.rates:
            shape(fabric, attached)
        if former.machine != attached.machine:
            forwarders.rename_of_card(fabric, attached)
        if dnsmasq.has_names(spec):
            dnsmasq.write_card(fabric.network_folder(network), attached)
            _tell_names(fabric, network, spec)
            if (former.nic.up, former.nic.ipv4) != (attached.nic.up, attached.nic.ipv4):
                announce.announce(fabric, attached)


def _change_direct(home: names.Home, attached: Attached) -> None:
    """A card without a fabric: there is nothing to change but its name and its cable."""
    if not card_file(home, attached.nic.key).exists():
        raise NotFound(f"the card {attached.nic.key} hangs in no network now", code="not_attached", hint="restart the machine")
    write_record(card_file(home, attached.nic.key), attached)
    state = "up" if attached.nic.up else "down"
    links.apply("ip", [f"link set dev {naming.macvtap_name(attached.nic.key)} {state}"])


def _tell_names(fabric: Fabric, network: str, spec: NetworkSpec) -> None:
    """Have a network's dnsmasq know of what changed; only of other domains it must be started anew for."""
    folder = fabric.network_folder(network)
    if write_names(fabric, network, spec):
        dnsmasq.start(fabric.holder, folder, network, running=dnsmasq.child_name(network) in fabric.running)
    else:
        dnsmasq.reread(fabric.holder, network)


def repair(home: names.Home) -> list[str]:
    """Make the fabric what its files say, whatever was killed or changed. The keys of cards that QEMU has lost for good.

    Those are detached; machines that go on need new ones.
    """
    if not home.fabric.exists():
        return []
    with locked(home):
        lost = _drop_direct(home)
        wanted = cards_inside(home)
        if not wanted:
            return lost
        with opened(home) as fabric:
            if fabric is not None:
                return lost + _mend_and_drop(fabric)
        with started(home) as (fabric, went_on):
            if went_on:
                return lost + _mend_and_drop(fabric)
            end(home, fabric.key, fabric.holder)
            return lost + sorted(wanted)


def _drop_direct(home: names.Home) -> list[str]:
    """Forget cards on a card of the host that vanished, and theirs with it, once that is there again; their keys."""
    lost = [key for key, card in attached_cards(home).items() if lan.is_direct(card) and lan.is_cut_off(card)]
    for key in lost:
        card_file(home, key).unlink(missing_ok=True)
    return lost


def _mend_and_drop(fabric: Fabric) -> list[str]:
    lost = mend(fabric)
    for key in lost:
        _detach(fabric, fabric.cards[key])
    return lost


# -- looking -----------------------------------------------------------------------------------------------------------------


def capture_socket(home: names.Home, key: str) -> socket.socket:
    """A packet(7) socket that gets every frame of a card, whole, from now on. Raises NotFound (``not_attached``), HostLacks."""
    with opened(home) as fabric:
        attached = attached_cards(home).get(key)
        if attached is None or (fabric is None and not lan.is_direct(attached)):
            raise NotFound(f"the card {key} hangs in no network now", code="not_attached", hint="start the machine first")
        if fabric is None or lan.is_direct(attached):
            frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_FRAMES))
            link = naming.macvtap_name(key)
        else:
            frames = fabric.holder.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_FRAMES))
            link = naming.tap_name(key)
        try:
            frames.bind((link, _ALL_FRAMES))
        except OSError as cause:
            frames.close()
            raise NotFound(
                f"the card {key} is gone: {cause.strerror}", code="not_attached", hint="run: insula network repair"
            ) from None
        return frames
