"""Make what hangs on networks for a machine be again what its record says: after a verb that died over it, and after something
that cards hang on was killed.

Such a verb notes in the journal that it is at work. Whoever finds that note need not know how far it came: what the guest has,
what the record says and what the networks hold are compared. The record is right.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from insula.errors import InsulaError
from insula.model.network import Nic
from insula.model.status import State
from insula.operations.addressing import introduce
from insula.operations.cabling import attached, change_cards, hang, hanging_keys, plug_cables, take_off
from insula.operations.cards import has_fabric, network_of
from insula.operations.context import Context
from insula.operations.observe import observe
from insula.store import names
from insula.store.events import append_event
from insula.store.machines import MachineRecord, read_machine
from insula.store.networks import claims, list_networks, release_card


def rewire(context: Context, folder: Path, *, alive: bool) -> list[str]:
    """See the module; the caller holds the machine's lock. Returns what was not so, in words that follow the machine's name.

    Raises InsulaError when it could not be made so, OSError.
    """
    record = read_machine(folder)
    told: list[str] = []
    if alive and has_fabric(context):
        told += _pull_strangers(context, folder, record)
        told += _plug_missing(context, folder, record)
        if _differs(context, folder.name, record):
            change_cards(context, folder.name, record)
            told.append("was on its networks with another firewall, name or limit: set again")
        told += _mend_ports(context, folder.name, record)
    _release_strangers(context, record)
    return told


def plug(context: Context, folder: Path, record: MachineRecord, nic: Nic) -> None:
    """Hang a card on its network and plug it into the machine, which runs. Raises HostLacks, NotFound, MachineEnded."""
    from insula.engines.base import NicPlan

    assert record.board is not None
    tap = hang(context.home, folder.name, record, nic)
    try:
        context.engine.plug(folder / names.RUN, NicPlan(nic.mac, tap, nic.slot), offloads=record.board.offloads)
    finally:
        os.close(tap)


def _pull_strangers(context: Context, folder: Path, record: MachineRecord) -> list[str]:
    """Pull and take off what the record does not have. Raises GuestError (``card_in_use``)."""
    from insula.networks.fabric import detach

    there, own = context.engine.cards(folder / names.RUN), {nic.slot for nic in record.nics}
    for slot in there - own:
        context.engine.pull(folder / names.RUN, slot)
    strangers = hanging_keys(context.home, record.id) - {nic.key for nic in record.nics}
    for key in strangers:
        detach(context.home, key)
    return ["had a card that is nobody's: taken away"] if strangers or there - own else []


def _plug_missing(context: Context, folder: Path, record: MachineRecord) -> list[str]:
    """Plug in what the guest does not have, and what has lost what it hung on. The guest finds out again what it knew of it, but
    for its addresses. Raises GuestError (``card_in_use``), HostLacks, NotFound (``parent_missing``)."""
    from insula.networks.lan import check_parent

    run = folder / names.RUN
    there, hanging = context.engine.cards(run), hanging_keys(context.home, record.id)
    missing = [nic for nic in record.nics if nic.slot not in there or nic.key not in hanging]
    for nic in missing:
        check_parent(network_of(context.home, nic).spec)
        take_off(context.home, nic)
        context.engine.pull(run, nic.slot)
        try:
            plug(context, folder, record, nic)
        except BaseException:
            take_off(context.home, nic)
            raise
    if not missing:
        return []
    plug_cables(context, run, record)
    append_event(folder, "cards-replaced")
    status, _ = observe(folder)
    if status.agent and status.state is State.RUNNING:
        introduce(context, folder, record)
    return ["had lost its network card: it has a new one"]


def _differs(context: Context, name: str, record: MachineRecord) -> bool:
    from insula.networks.ground import attached_cards

    hanging = attached_cards(context.home)
    return any(nic.key in hanging and hanging[nic.key] != attached(context.home, name, record, nic) for nic in record.nics)


def _mend_ports(context: Context, name: str, record: MachineRecord) -> list[str]:
    from insula.networks.forwarders import published, unpublish
    from insula.operations.ports import reopen_ports  # which begins as every verb does: with what calls us

    strangers = [each.publish for each in published(context.home) if each.machine_id == record.id]
    strangers = [port for port in strangers if port not in record.published]
    for port in strangers:
        unpublish(context.home, port)
    reopen_ports(context, name, record)
    return ["was led to by a port that it does not publish: closed"] if strangers else []


def _release_strangers(context: Context, record: MachineRecord) -> None:
    """Give back addresses that the machine claims for no card it has."""
    own = {(nic.network, nic.mac) for nic in record.nics}
    for name, network in list_networks(context.home):
        for claim in claims(context.home, name):
            if claim.machine == record.id and (network.id, claim.mac) not in own:
                with contextlib.suppress(InsulaError):
                    release_card(context.home, name, claim.mac)
