"""How a fabric comes, is put right, and goes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence

import msgspec

from insula.errors import DamagedRecord, HostLacks, InsulaError, NotFound
from insula.host import links, nft
from insula.host.files import is_temporary, remove_tree
from insula.host.holder import Holder, start_holder
from insula.host.together import together
from insula.model.network import NetworkSpec
from insula.networks import announce, forwarders, lan, lone, naming, plan, relay, rules, uplinks
from insula.networks import names as dnsmasq
from insula.networks.ground import Fabric, attached_cards, cards_inside, expected, opened
from insula.networks.plan import Attached
from insula.store import names
from insula.store.records import read_record, write_record


@contextlib.contextmanager
def raised(home: names.Home) -> Iterator[Fabric]:
    """The fabric, made if it is not there, or gone on with if its holder died; perhaps still bare. Hold the lock."""
    with opened(home) as fabric:
        if fabric is not None:
            if fabric.bare or expected(fabric) - fabric.running:  # bare: who was just making it was killed
                mend(fabric)
            elif note_addresses(fabric):
                nft.apply(rules.base_rules(fabric.state.uplink, fabric.state.addresses), fabric.holder.spaces)
            yield fabric
            return
    with started(home) as (fabric, went_on):
        if went_on:
            mend(fabric)
        yield fabric


@contextlib.contextmanager
def started(home: names.Home) -> Iterator[tuple[Fabric, bool]]:
    key, root = naming.home_key(home.root), os.geteuid() == 0
    holder, went_on = start_holder(home.fabric / names.HOLDER_SOCKET, own_user=not root)
    with holder:
        try:
            if not (went_on and (home.fabric / names.FABRIC_STATE).exists()):
                _clear(home, key)
                write_record(home.fabric / names.FABRIC_STATE, uplinks.choose(key, root=root))
            state = read_record(home.fabric / names.FABRIC_STATE, uplinks.State)
            fabric = Fabric(home, holder, state, key, cards_inside(home))
            if not went_on:
                _set_sysctls(fabric)  # before there is any link: it begins with what is so for all
        except BaseException:
            with contextlib.suppress(InsulaError):
                end(home, key, holder)
            raise
        yield fabric, went_on


def _clear(home: names.Home, home_key: str) -> None:
    """What an earlier fabric left, of which nothing lives: the host was rebooted, or all of it was killed."""
    if os.geteuid() == 0 and (home.fabric / names.FABRIC_STATE).exists():
        uplinks.lower_root(home_key)
    for attached in attached_cards(home).values():
        lan.remove(attached)
        lone.end(home, attached.nic.key)
    for name in (names.FABRIC_NICS, names.FABRIC_NETWORKS, names.FABRIC_PORTS, names.FABRIC_SEGMENTS):
        remove_tree(home.fabric / name)
        (home.fabric / name).mkdir(mode=0o700)
    for name in (names.FABRIC_STATE, names.FABRIC_LAID):
        (home.fabric / name).unlink(missing_ok=True)


def _read_state(home: names.Home) -> uplinks.State | None:
    with contextlib.suppress(FileNotFoundError, DamagedRecord):
        return read_record(home.fabric / names.FABRIC_STATE, uplinks.State)
    return None


def lay(fabric: Fabric, commands: Sequence[str] = (), batch: Sequence[str] = ()) -> None:
    """Make what is there before any network, in a fabric that is bare; ``commands`` for nft and ``batch`` for ip come along.

    The rules are there before anything is up that they are for.
    """
    base = rules.base_rules(fabric.state.uplink, fabric.state.addresses)
    together(lambda: _join_world(fabric), lambda: nft.apply([*base, *commands], fabric.holder.spaces))
    links.apply("ip", [*plan.fabric_links(fabric.state.uplink), *batch], fabric.holder.spaces, tolerated=links.THERE)
    (fabric.folder / names.FABRIC_LAID).touch()


def _set_sysctls(fabric: Fabric) -> None:
    for name, value in plan.fabric_sysctls().items():
        try:
            fabric.holder.sysctl(name.removeprefix("net/"), value)
        except HostLacks as refusal:
            if "No such file" not in refusal.message:
                raise


def _join_world(fabric: Fabric) -> None:
    state, holder = fabric.state, fabric.holder
    if state.uplink is None:
        if not uplinks.world_is_there():
            return  # an old pasta ends at once then; a new one stays, in a world of its own that leads nowhere
        log = os.open(fabric.folder / names.PASTA_LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            uplinks.start_pasta(fabric.key, holder, log)
        finally:
            os.close(log)
    else:
        uplinks.raise_root(fabric.key, state, holder, fabric.networks().values())


def mend(fabric: Fabric) -> list[str]:
    """Make all as the files say, whatever it is. The keys of cards whose taps are gone: their QEMUs have ended, or lost them."""
    fabric.running = fabric.holder.children()
    broken = [key for key, card in fabric.cards.items() if lone.is_lone(card) and not lone.mend(fabric, card)]
    present = links.counters(fabric.holder.spaces).keys() - set(map(naming.tap_name, broken))
    lost = [key for key in sorted(fabric.cards) if naming.tap_name(key) not in present]
    _set_sysctls(fabric)
    _mend_links(fabric, present)
    note_addresses(fabric)
    # Without those that are gone: another card may have their addresses by now.
    there = [card for key, card in fabric.cards.items() if key not in lost]
    wanted = rules.everything(fabric.state.uplink, fabric.state.addresses, fabric.networks(), there)
    nft.apply(wanted, fabric.holder.spaces)
    for key, attached in fabric.cards.items():
        if key not in lost and (attached.nic.rates.up or attached.nic.rates.down):
            shape(fabric, attached)
    if any(spec.mode == "nat" for spec in fabric.networks().values()):
        relay.ensure(fabric)
    for network, spec in fabric.networks().items():
        if dnsmasq.has_names(spec):
            _mend_names(fabric, network, spec)
    for card in there:  # whoever hung up one of them may have been killed before it was announced
        announce.announce(fabric, card)
    (fabric.folder / names.FABRIC_LAID).touch()
    forwarders.mend(fabric)
    fabric.running = fabric.holder.children()
    return lost


def note_addresses(fabric: Fabric) -> bool:
    """Look at the host's addresses anew; whether they are others than the rules know."""
    addresses = uplinks.host_addresses(fabric.key)
    if addresses == fabric.state.addresses:
        return False
    fabric.state = msgspec.structs.replace(fabric.state, addresses=addresses)
    write_record(fabric.folder / names.FABRIC_STATE, fabric.state)
    return True


def _mend_links(fabric: Fabric, present: Collection[str]) -> None:
    holder, state = fabric.holder, fabric.state
    if state.uplink is not None:
        uplinks.raise_root(fabric.key, state, holder, fabric.networks().values())
    elif uplinks.world_is_there() and (uplinks.PASTA not in fabric.running or naming.UPLINK not in present):
        # The link is pasta's and goes with it; one that makes none is just starting, or just ending.
        holder.stop(uplinks.PASTA)
        _join_world(fabric)
    batch = list(plan.fabric_links(state.uplink))
    for network, spec in fabric.networks().items():
        if spec.mode == "bridge":
            with contextlib.suppress(NotFound):  # its bridge vanished: machines of it and of other networks go on
                lan.join(network, spec, holder.spaces)
            if not links.exists(naming.lan_host_link(network)):
                continue
        batch += plan.network_links(network, spec)
    links.apply("ip", batch, holder.spaces, tolerated=links.THERE)
    cards = [line for key, card in fabric.cards.items() if naming.tap_name(key) in present for line in card_links(card)]
    links.apply("ip", cards, holder.spaces, tolerated=(*links.THERE, *links.GONE))  # a QEMU may be just ending


def write_names(fabric: Fabric, network: str, spec: NetworkSpec) -> bool:
    """The configuration of a network's dnsmasq; whether it is another one than before."""
    folder, servers = fabric.network_folder(network), relay.resolvers(fabric.state.addresses)
    return dnsmasq.write_config(folder, network, spec, fabric.of_network(network), servers, shared=fabric.is_shared(network))


def _mend_names(fabric: Fabric, network: str, spec: NetworkSpec) -> None:
    folder = fabric.network_folder(network)
    changed = write_names(fabric, network, spec)
    for attached in fabric.of_network(network):
        dnsmasq.write_card(folder, attached)
    running = dnsmasq.child_name(network) in fabric.running
    if changed or not running:
        dnsmasq.start_anew(fabric.holder, folder, network, running=running)


def card_links(attached: Attached) -> list[str]:
    """In the fabric: a card's tap in its network, up or not."""
    tap = naming.tap_name(attached.nic.key)
    return [*plan.nic_links(attached), *([] if attached.nic.up else [f"link set dev {tap} down"])]


def shape(fabric: Fabric, attached: Attached) -> None:
    """Slow a card down as its rates say, or no more."""
    links.apply("ip", plan.shaping_links(attached), fabric.holder.spaces, tolerated=links.THERE)
    links.apply("tc", plan.nic_shaping(attached), fabric.holder.spaces, tolerated=links.GONE)
    if not attached.nic.rates.up:
        links.apply("ip", plan.drop_shaping_links(attached.nic.key), fabric.holder.spaces, tolerated=links.GONE)


def end(home: names.Home, home_key: str, holder: Holder) -> None:
    """End the fabric and take all of it off the host."""
    state = _read_state(home)
    for attached in cards_inside(home).values():
        lan.leave(attached.nic.network, attached.network)
        lone.end(home, attached.nic.key)
    holder.quit()
    if state is not None and state.uplink is not None:
        uplinks.lower_root(home_key)
    for name in (names.FABRIC_NETWORKS, names.FABRIC_PORTS, names.FABRIC_SEGMENTS):
        remove_tree(home.fabric / name)
    for name in (names.HOLDER_SOCKET, names.FABRIC_STATE, names.FABRIC_LAID, names.PASTA_LOG):
        (home.fabric / name).unlink(missing_ok=True)
    for folder in (home.fabric, home.fabric / names.FABRIC_NICS):
        for entry in folder.iterdir():
            if is_temporary(entry.name):  # of a command that was killed: we hold the lock it held
                entry.unlink()
