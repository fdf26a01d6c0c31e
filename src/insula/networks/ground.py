"""What a fabric is told by: its lock, its files, and its holder while somebody works on it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from insula.errors import DamagedRecord
from insula.host.files import fleeting
from insula.host.holder import Holder, connect_holder
from insula.model.network import NetworkSpec
from insula.networks import lan, naming, relay, uplinks
from insula.networks import names as dnsmasq
from insula.networks.plan import Attached
from insula.store import names
from insula.store.locks import folder_lock
from insula.store.records import read_record

_ATTACHED: Final = ".json"
_STANDING: Final = ".standing"


class Fabric(msgspec.Struct):
    """A fabric while its lock is held. ``cards``: those that hang in it. ``running``: the programs that ran when it began."""

    home: names.Home
    holder: Holder
    state: uplinks.State
    key: str
    cards: dict[str, Attached]
    running: set[str] = msgspec.field(default_factory=set)

    @property
    def folder(self) -> Path:
        return self.home.fabric

    @property
    def bare(self) -> bool:
        """Whether what is there before any network is not there yet, or perhaps only in part."""
        return not (self.folder / names.FABRIC_LAID).exists()

    def network_folder(self, network: str) -> Path:
        return self.folder / names.FABRIC_NETWORKS / network

    def networks(self) -> dict[str, NetworkSpec]:
        """The networks that cards are in."""
        return {attached.nic.network: attached.network for attached in self.cards.values()}

    def of_network(self, network: str) -> list[Attached]:
        return [attached for attached in self.cards.values() if attached.nic.network == network]

    def is_shared(self, network: str) -> bool:
        """Whether machines of a network are on others that have names, too."""
        here = {attached.machine_id for attached in self.of_network(network)}
        return any(
            attached.machine_id in here and attached.nic.network != network and dnsmasq.has_names(attached.network)
            for attached in self.cards.values()
        )


@contextlib.contextmanager
def locked(home: names.Home) -> Iterator[None]:
    """One at a time changes the fabric. What is written meanwhile need not outlive the computer."""
    home.fabric.mkdir(mode=0o700, parents=True, exist_ok=True)
    with folder_lock(home.fabric), fleeting():
        for name in (names.FABRIC_NICS, names.FABRIC_NETWORKS):
            (home.fabric / name).mkdir(mode=0o700, exist_ok=True)
        yield


def attached_cards(home: names.Home) -> dict[str, Attached]:
    """All cards that are attached, by their keys."""
    return _cards(home, _ATTACHED)


def standing_cards(home: names.Home) -> dict[str, Attached]:
    """Cards that have a tap and wait to take others' places."""
    return _cards(home, _STANDING)


def _cards(home: names.Home, kind: str) -> dict[str, Attached]:
    found = {}
    folder = home.fabric / names.FABRIC_NICS
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(folder)):
            if name.endswith(kind) and not name.startswith("."):
                with contextlib.suppress(FileNotFoundError):
                    found[name.removesuffix(kind)] = read_record(folder / name, Attached)
    return found


def standing_file(home: names.Home, key: str) -> Path:
    return home.fabric / names.FABRIC_NICS / f"{key}{_STANDING}"


def cards_inside(home: names.Home) -> dict[str, Attached]:
    """Those that hang in the fabric, not on a network card of the host."""
    return {key: attached for key, attached in attached_cards(home).items() if not lan.is_direct(attached)}


def card_file(home: names.Home, key: str) -> Path:
    return home.fabric / names.FABRIC_NICS / f"{key}.json"


@contextlib.contextmanager
def opened(home: names.Home) -> Iterator[Fabric | None]:
    """The fabric that is there, or None. Hold the lock."""
    holder = connect_holder(home.fabric / names.HOLDER_SOCKET)
    if holder is None or not (home.fabric / names.FABRIC_STATE).exists():
        if holder is not None:
            holder.close()
        yield None
        return
    with holder:
        try:
            state = read_record(home.fabric / names.FABRIC_STATE, uplinks.State)
        except DamagedRecord:  # of another version, or half lost: what is made anew is made anew from nothing
            holder.quit()
            yield None
            return
        yield Fabric(home, holder, state, naming.home_key(home.root), cards_inside(home), holder.children())


def expected(fabric: Fabric) -> set[str]:
    """The programs that should run, but for those that publish ports."""
    servers = {dnsmasq.child_name(network) for network, spec in fabric.networks().items() if dnsmasq.has_names(spec)}
    if any(spec.mode == "nat" for spec in fabric.networks().values()):
        servers |= relay.children(fabric.state.addresses)
    # Where the host itself has no way out pasta is not started.
    return servers if fabric.state.uplink is not None or not uplinks.world_is_there() else servers | {uplinks.PASTA}
