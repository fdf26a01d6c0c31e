"""The fabric of a home: networks that are in use, as the kernel has them. What `plan`, `rules` and `dns` say is made so here.

It begins with the first card that is attached and ends with the last one's detaching. Everything it is made of follows from the
files in ``fabric/``: ``state.json`` (its uplink) and ``nics/KEY.json`` (each card); they are written before, and removed after,
what they stand for is there. So whatever died half-way, `repair` puts right.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from insula.errors import HostLacks, InsulaError, NotFound
from insula.host import links, nft
from insula.host.files import fleeting, remove_tree
from insula.host.holder import Holder, connect_holder, start_holder
from insula.model.network import NetworkSpec
from insula.networks import lan, naming, plan, rules, uplinks
from insula.networks import names as dnsmasq
from insula.networks.plan import Attached
from insula.store import names
from insula.store.locks import folder_lock
from insula.store.records import read_record, write_record

_STATE: Final = "state.json"
_PASTA_LOG: Final = "pasta.log"


@dataclass
class Fabric:
    """A fabric while its lock is held. ``running``: the programs that ran when it was looked at last."""

    home: names.Home
    holder: Holder
    state: uplinks.State
    key: str
    cards: dict[str, Attached]
    running: set[str] = field(default_factory=set)

    @property
    def folder(self) -> Path:
        return self.home.fabric

    def network_folder(self, network: str) -> Path:
        return self.folder / names.FABRIC_NETWORKS / network

    def networks(self) -> dict[str, NetworkSpec]:
        """The networks that cards are in."""
        return {attached.nic.network: attached.network for attached in self.cards.values()}

    def of_network(self, network: str) -> list[Attached]:
        return [attached for attached in self.cards.values() if attached.nic.network == network]


# -- what is there -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(home: names.Home) -> Iterator[None]:
    """One at a time changes the fabric. What is written meanwhile need not outlive the computer."""
    for folder in (home.fabric, home.fabric / names.FABRIC_NICS, home.fabric / names.FABRIC_NETWORKS):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with folder_lock(home.fabric), fleeting():
        yield


def attached_cards(home: names.Home) -> dict[str, Attached]:
    """All cards that are attached, by their keys."""
    found = {}
    folder = home.fabric / names.FABRIC_NICS
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(folder)):
            if name.endswith(".json") and not name.startswith("."):
                with contextlib.suppress(FileNotFoundError):
                    found[name.removesuffix(".json")] = read_record(folder / name, Attached)
    return found


def card_file(home: names.Home, key: str) -> Path:
    return home.fabric / names.FABRIC_NICS / f"{key}.json"


@contextlib.contextmanager
def opened(home: names.Home) -> Iterator[Fabric | None]:
    """The fabric that is there, or None. Hold the lock."""
    holder = connect_holder(home.fabric / names.HOLDER_SOCKET)
    if holder is None or not (home.fabric / _STATE).exists():
        if holder is not None:
            holder.close()
        yield None
        return
    with holder:
        state = read_record(home.fabric / _STATE, uplinks.State)
        yield Fabric(home, holder, state, naming.home_key(home.root), attached_cards(home), holder.children())


@contextlib.contextmanager
def _raised(home: names.Home) -> Iterator[Fabric]:
    """The fabric, made if it is not there, or gone on with if its holder died. Hold the lock."""
    with opened(home) as fabric:
        if fabric is not None:
            yield fabric
            return
    with _started(home) as (fabric, went_on):
        if went_on:
            _mend(fabric)
        yield fabric


@contextlib.contextmanager
def _started(home: names.Home) -> Iterator[tuple[Fabric, bool]]:
    key, root = naming.home_key(home.root), os.geteuid() == 0
    holder, went_on = start_holder(home.fabric / names.HOLDER_SOCKET, own_user=not root)
    with holder:
        try:
            if not (went_on and (home.fabric / _STATE).exists()):
                _clear(home, key)
                write_record(home.fabric / _STATE, uplinks.choose(key, root=root))
            state = read_record(home.fabric / _STATE, uplinks.State)
            fabric = Fabric(home, holder, state, key, attached_cards(home))
            if not went_on:
                _lay_base(fabric)
        except BaseException:
            with contextlib.suppress(InsulaError):
                _end(home, key, holder)
            raise
        yield fabric, went_on


def _clear(home: names.Home, key: str) -> None:
    """What an earlier fabric left, of which nothing lives: the host was rebooted, or all of it was killed."""
    state = _read_state(home)
    if state is not None and os.geteuid() == 0:
        uplinks.lower_root(key, state)
    for attached in attached_cards(home).values():
        lan.remove(attached)
    for name in (names.FABRIC_NICS, names.FABRIC_NETWORKS, names.FABRIC_PORTS):
        remove_tree(home.fabric / name)
        (home.fabric / name).mkdir(mode=0o700)
    (home.fabric / _STATE).unlink(missing_ok=True)


def _read_state(home: names.Home) -> uplinks.State | None:
    with contextlib.suppress(FileNotFoundError):
        return read_record(home.fabric / _STATE, uplinks.State)
    return None


def _lay_base(fabric: Fabric) -> None:
    """What is there before any network."""
    _set_sysctls(fabric)
    _together(lambda: _join_world(fabric), lambda: _base_rules(fabric))


def _base_rules(fabric: Fabric) -> None:
    nft.apply_text(rules.PRELUDE, fabric.holder.spaces)
    nft.apply(rules.base_rules(fabric.state.uplink, fabric.state.addresses), fabric.holder.spaces)


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
        log = os.open(fabric.folder / _PASTA_LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            uplinks.start_pasta(fabric.key, holder, log)
        finally:
            os.close(log)
    else:
        uplinks.raise_root(fabric.key, state, holder, fabric.networks().values())
    links.apply("ip", plan.fabric_links(state.uplink), holder.spaces)


def _together(*works: Callable[[], None]) -> None:
    """Side by side: each mostly waits for a program. The first error is raised when all have ended."""
    errors: list[BaseException] = []

    def attempt(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 (raised by who waits for all)
            errors.append(error)

    threads = [threading.Thread(target=attempt, args=(work,)) for work in works[1:]]
    for thread in threads:
        thread.start()
    attempt(works[0])
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# -- attaching ---------------------------------------------------------------------------------------------------------------


def attach(home: names.Home, attached: Attached) -> int:
    """Hang a card into its network, making what is missing of network and fabric; the descriptor for QEMU.

    Frames have virtio's header before them. Raises HostLacks, or NotFound (``parent_missing``); then the card is not attached.
    """
    with locked(home):
        if lan.is_direct(attached):
            write_record(card_file(home, attached.nic.key), attached)
            try:
                return lan.open_macvtap(attached)
            except BaseException:
                _forget(home, attached)
                raise
        with _raised(home) as fabric:
            try:
                return _attach(fabric, attached)
            except BaseException:
                with contextlib.suppress(InsulaError):
                    _detach(fabric, attached)
                raise


def _attach(fabric: Fabric, attached: Attached) -> int:
    key, network, spec = attached.nic.key, attached.nic.network, attached.network
    former = fabric.cards.get(key)
    known = network in fabric.networks()
    fabric.cards[key] = attached
    write_record(card_file(fabric.home, key), attached)
    tap = fabric.holder.tap(naming.tap_name(key))
    try:
        if not known:
            _prepare_network(fabric, network, spec)
        folder = fabric.network_folder(network)
        if dnsmasq.has_names(spec):
            changed = dnsmasq.write_config(folder, network, spec, fabric.of_network(network))
            dnsmasq.write_card(folder, attached)
        batch = ([] if known else plan.network_links(network, spec)) + _card_links(attached)
        commands = ([] if known else rules.network_rules(network, spec)) + rules.nic_rules(attached, former)
        _together(
            lambda: links.apply("ip", batch, fabric.holder.spaces, tolerated=links.THERE),
            lambda: _load(fabric, rules.nic_sets(attached), commands),
            lambda: (
                None if known or not fabric.state.uplink else uplinks.offer(fabric.key, fabric.state, fabric.networks().values())
            ),
        )
        if attached.nic.rates.up or attached.nic.rates.down:
            _shape(fabric, attached)
        if dnsmasq.has_names(spec):
            running = dnsmasq.child_name(network) in fabric.running
            if changed or not running:
                dnsmasq.start(fabric.holder, folder, network, running=running)
    except BaseException:
        os.close(tap)
        raise
    return tap


def _load(fabric: Fabric, sets: Sequence[dict[str, Any]], commands: Sequence[dict[str, Any]]) -> None:
    """Rules, after the sets that these fill: nft wants those to be there before (see `rules.nic_sets`)."""
    nft.apply(sets, fabric.holder.spaces)
    nft.apply(commands, fabric.holder.spaces)


def _prepare_network(fabric: Fabric, network: str, spec: NetworkSpec) -> None:
    if spec.mode == "bridge":
        lan.join(network, spec, fabric.holder.spaces)


def _card_links(attached: Attached) -> list[str]:
    tap = naming.tap_name(attached.nic.key)
    return [*plan.nic_links(attached), *([] if attached.nic.up else [f"link set dev {tap} down"])]


def _shape(fabric: Fabric, attached: Attached) -> None:
    links.apply("ip", plan.shaping_links(attached), fabric.holder.spaces)
    links.apply("tc", plan.nic_shaping(attached), fabric.holder.spaces, tolerated=links.GONE)
    if not attached.nic.rates.up:
        links.apply("ip", plan.drop_shaping_links(attached.nic.key), fabric.holder.spaces, tolerated=links.GONE)


# -- detaching ---------------------------------------------------------------------------------------------------------------


def detach(home: names.Home, key: str) -> None:
    """Take a card off; nothing happens when it is not attached. The last one ends the fabric."""
    if not home.fabric.exists():
        return
    with locked(home), opened(home) as fabric:
        attached = attached_cards(home).get(key)
        if attached is None:
            return
        if fabric is None or lan.is_direct(attached):
            _forget(home, attached)
        else:
            _detach(fabric, attached)


def _forget(home: names.Home, attached: Attached) -> None:
    lan.remove(attached)
    card_file(home, attached.nic.key).unlink(missing_ok=True)


def _detach(fabric: Fabric, attached: Attached) -> None:
    key, network, spec = attached.nic.key, attached.nic.network, attached.network
    fabric.cards.pop(key, None)
    if not any(not lan.is_direct(other) for other in fabric.cards.values()):
        _end(fabric.home, fabric.key, fabric.holder)
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
    elif dnsmasq.has_names(spec) and dnsmasq.drop_card(folder, key):
        dnsmasq.write_config(folder, network, spec, fabric.of_network(network))
        dnsmasq.start(fabric.holder, folder, network, running=dnsmasq.child_name(network) in fabric.running)
    card_file(fabric.home, key).unlink(missing_ok=True)


def _end(home: names.Home, key: str, holder: Holder) -> None:
    """End the fabric and take all of it off the host."""
    state = _read_state(home)
    for attached in attached_cards(home).values():
        if not lan.is_direct(attached):
            lan.leave(attached.nic.network, attached.network)
    holder.quit()
    if state is not None and state.uplink is not None:
        uplinks.lower_root(key, state)
    for name in (names.FABRIC_NETWORKS, names.FABRIC_PORTS):
        remove_tree(home.fabric / name)
    for name in (names.HOLDER_SOCKET, _STATE, _PASTA_LOG):
        (home.fabric / name).unlink(missing_ok=True)


# -- changing ----------------------------------------------------------------------------------------------------------------


def change(home: names.Home, attached: Attached) -> None:
    """Make a card's firewall, rates, link, name and addresses as in ``attached``, in one instant each.

    Raises NotFound (``not_attached``), HostLacks.
    """
    key, network, spec = attached.nic.key, attached.nic.network, attached.network
    with locked(home), opened(home) as fabric:
        former = fabric.cards.get(key) if fabric is not None else None
        if fabric is None or former is None:
            raise NotFound(f"the card {key} hangs in no network now", code="not_attached", hint="run: insula network repair")
        fabric.cards[key] = attached
        write_record(card_file(home, key), attached)
        _load(fabric, rules.nic_sets(attached), rules.nic_rules(attached, former))
        if former.nic.up != attached.nic.up:
            state = "up" if attached.nic.up else "down"
            links.apply("ip", [f"link set dev {naming.tap_name(key)} {state}"], fabric.holder.spaces)
        if former.nic.rates != attached.nic.rates:
            _shape(fabric, attached)
        if dnsmasq.has_names(spec):
            folder = fabric.network_folder(network)
            dnsmasq.write_card(folder, attached)
            renamed = (former.machine, former.nic) != (attached.machine, attached.nic)
            if dnsmasq.write_config(folder, network, spec, fabric.of_network(network)) or renamed:
                dnsmasq.start(fabric.holder, folder, network, running=dnsmasq.child_name(network) in fabric.running)


# -- repairing ---------------------------------------------------------------------------------------------------------------


def repair(home: names.Home) -> list[str]:
    """Make the fabric what its files say, whatever was killed or changed. The keys of cards whose link to QEMU is lost for good.

    Those cards count as detached afterwards; their machines need new ones.
    """
    if not home.fabric.exists():
        return []
    with locked(home):
        before = attached_cards(home)
        if not before:
            return []
        with opened(home) as fabric:
            if fabric is not None:
                return _mend(fabric)
        with _started(home) as (fabric, went_on):
            lost = _mend(fabric) if went_on else sorted(before)
            if not fabric.cards:
                _end(home, fabric.key, fabric.holder)
            return lost


def _mend(fabric: Fabric) -> list[str]:
    fabric.running = fabric.holder.children()
    present = _links_inside(fabric)
    lost = sorted(key for key, card in fabric.cards.items() if not lan.is_direct(card) and naming.tap_name(key) not in present)
    for key in lost:
        (fabric.folder / names.FABRIC_NICS / f"{key}.json").unlink(missing_ok=True)
        del fabric.cards[key]
    _set_sysctls(fabric)
    _mend_links(fabric, present)
    nft.apply_text(rules.PRELUDE, fabric.holder.spaces)
    cards = [card for card in fabric.cards.values() if not lan.is_direct(card)]
    sets = [command for card in cards for command in rules.nic_sets(card)]
    _load(fabric, sets, rules.everything(fabric.state.uplink, fabric.state.addresses, fabric.networks(), cards))
    for attached in cards:
        if attached.nic.rates.up or attached.nic.rates.down:
            _shape(fabric, attached)
    for network, spec in fabric.networks().items():
        if dnsmasq.has_names(spec):
            _mend_names(fabric, network, spec)
    return lost


def _mend_links(fabric: Fabric, present: Mapping[str, object]) -> None:
    holder, state = fabric.holder, fabric.state
    if state.uplink is not None:
        uplinks.raise_root(fabric.key, state, holder, fabric.networks().values())
    elif uplinks.PASTA not in fabric.running:
        if naming.UPLINK in present:  # of a pasta that is gone: another one makes its own
            links.apply("ip", [f"link delete dev {naming.UPLINK}"], holder.spaces, tolerated=links.GONE)
        _join_world(fabric)
    batch = list(plan.fabric_links(state.uplink))
    for network, spec in fabric.networks().items():
        if spec.mode == "bridge":
            lan.join(network, spec, holder.spaces)
        batch += plan.network_links(network, spec)
    for attached in fabric.cards.values():
        batch += [] if lan.is_direct(attached) else _card_links(attached)
    links.apply("ip", batch, holder.spaces, tolerated=links.THERE)


def _mend_names(fabric: Fabric, network: str, spec: NetworkSpec) -> None:
    folder = fabric.network_folder(network)
    changed = dnsmasq.write_config(folder, network, spec, fabric.of_network(network))
    for attached in fabric.of_network(network):
        dnsmasq.write_card(folder, attached)
    running = dnsmasq.child_name(network) in fabric.running
    if changed or not running:
        dnsmasq.start(fabric.holder, folder, network, running=running)


def _links_inside(fabric: Fabric) -> dict[str, links.Counted]:
    return links.counters(fabric.holder.spaces)
