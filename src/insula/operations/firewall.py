"""A machine's firewall: shown, and changed at once while it runs."""

from __future__ import annotations

import msgspec

from insula.errors import NotFound
from insula.model.network import MACHINE_PEER, Firewall, check_firewall, check_rule, format_rule
from insula.model.requests import SetFirewall, ShowFirewall
from insula.operations.cabling import change_cards, check_holds, network_of
from insula.operations.context import Context
from insula.operations.hold import hold_machine
from insula.operations.operation import Operation
from insula.store.events import append_event
from insula.store.machines import machine_folder, read_machine, write_machine


def show(context: Context, request: ShowFirewall, operation: Operation) -> Firewall:
    """The firewall of a machine. Raises NotFound, DamagedRecord."""
    del operation
    return read_machine(machine_folder(context.home, request.name)).firewall


def change(context: Context, request: SetFirewall, operation: Operation) -> Firewall:
    """Change it; all of it holds at once, or nothing. Raises NotFound, UsageError (``bad_rule``), HostLacks."""
    with hold_machine(context, request.name, "firewall") as held:
        firewall = changed(Firewall() if request.clear else held.record.firewall, request)
        for rule in request.add:
            if rule.peer.startswith(MACHINE_PEER):
                machine_folder(context.home, rule.peer.removeprefix(MACHINE_PEER))
        for nic in held.record.nics:
            check_firewall(network_of(context.home, nic).spec, firewall)
            check_holds(context, nic, firewall)
        after = msgspec.structs.replace(held.record, firewall=firewall)
        if held.status.state.has_process:
            operation.tell("load its rules")
            change_cards(context, request.name, after)
        write_machine(held.folder, after)
        append_event(held.folder, "firewall", profile=firewall.profile, isolated=firewall.isolated, rules=_words(firewall))
        return firewall


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
