"""A machine's firewall: shown, and changed at once while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import msgspec

from insula.errors import InsulaError, NotFound
from insula.model.network import MACHINE_PEER, Firewall, Rule, check_firewall, check_rule, format_rule
from insula.model.network_requests import SetFirewall, ShowFirewall
from insula.operations.cabling import change_cards, check_holds
from insula.operations.cards import network_of
from insula.operations.context import Context
from insula.operations.hold import Held, hold_machine, noted
from insula.operations.operation import Operation
from insula.store.events import append_event
from insula.store.machines import machine_folder, machine_names, read_machine, write_machine
from insula.store.names import Home


def show(context: Context, request: ShowFirewall, operation: Operation) -> Firewall:
    """The firewall of a machine. Raises NotFound, DamagedRecord."""
    del operation
    return read_machine(machine_folder(context.home, request.name)).firewall


def change(context: Context, request: SetFirewall, operation: Operation) -> Firewall:
    """Change it; all of it holds at once, or nothing. Raises NotFound, UsageError (``bad_rule``), HostLacks."""
    with hold_machine(context, request.name, "firewall") as held:
        firewall = changed(Firewall() if request.clear else held.record.firewall, request)
        check_peers(context.home, request.add)
        for nic in held.record.nics:
            check_firewall(network_of(context.home, nic).spec, firewall)
            check_holds(context, nic, firewall)
        if held.status.state.has_process:
            operation.tell("load its rules")
        _load(context, held, firewall)
        return firewall


def _load(context: Context, held: Held, firewall: Firewall) -> None:
    """Let its cards obey. When one cannot, none does, and the machine has the firewall it had."""
    with noted(held, "firewall"):
        after = msgspec.structs.replace(held.record, firewall=firewall)
        write_machine(held.folder, after)
        try:
            if held.status.state.has_process:
                change_cards(context, held.folder.name, after)
        except InsulaError:
            write_machine(held.folder, held.record)
            with contextlib.suppress(InsulaError):
                change_cards(context, held.folder.name, held.record)
            raise
    append_event(held.folder, "firewall", profile=firewall.profile, isolated=firewall.isolated, rules=_words(firewall))


def check_peers(home: Home, rules: Iterable[Rule]) -> None:
    """Raises NotFound when one of ``rules`` names a machine that is not there: nobody would see that it says nothing."""
    for rule in rules:
        if rule.peer.startswith(MACHINE_PEER):
            machine_folder(home, rule.peer.removeprefix(MACHINE_PEER))


def follow_rename(context: Context, former: str, name: str) -> list[str]:
    """Let other machines' rules that name ``former`` name ``name``; those whose rules could not be changed now."""
    left = []
    for other in machine_names(context.home):
        with contextlib.suppress(InsulaError, OSError):
            if other == name or not _naming(read_machine(context.home.machine(other)).firewall, former):
                continue
            left.append(other)
            with hold_machine(context, other, "firewall") as held:
                rules = tuple(
                    msgspec.structs.replace(rule, peer=f"{MACHINE_PEER}{name}")
                    if rule in _naming(held.record.firewall, former)
                    else rule
                    for rule in held.record.firewall.rules
                )
                _load(context, held, msgspec.structs.replace(held.record.firewall, rules=rules))
            left.remove(other)
    return left


def _naming(firewall: Firewall, name: str) -> list[Rule]:
    return [rule for rule in firewall.rules if rule.peer == f"{MACHINE_PEER}{name}"]


def changed(firewall: Firewall, request: SetFirewall) -> Firewall:
    """Pure: ``firewall`` as ``request`` wants it. Raises UsageError, NotFound (``no_such_rule``)."""
    rules = list(firewall.rules)
    for rule in request.remove:
        if rule not in rules:
            raise NotFound(
                f"there is no rule '{format_rule(rule)}'",
                code="no_such_rule",
                hint=f"to see them: insula firewall show {request.name}",
            )
        rules.remove(rule)
    for rule in request.add:
        if check_rule(rule) not in rules:
            rules.append(rule)
    return Firewall(
        profile=request.profile or firewall.profile,
        isolated=firewall.isolated if request.isolated is None else request.isolated,
        rules=tuple(rules),
    )


def _words(firewall: Firewall) -> list[str]:
    return [format_rule(rule) for rule in firewall.rules]
