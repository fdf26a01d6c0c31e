"""All that is known of a machine, as `insula show` prints it."""

from __future__ import annotations

from typing import Any

from insula.cli.render import age, print_pairs, print_table
from insula.model.network import format_publish, format_rate, format_rule
from insula.model.units import format_size


def _state(machine: Any) -> str:
    because = f" ({machine.reason})" if machine.reason else ""
    return str(machine.state) + because + (", deleted when it ends" if machine.ephemeral else "")


def _card(network: str, nic: Any) -> str:
    """``nat (52:54:00:01:02:03, up 20mbit)``."""
    limits = [f"{way} {format_rate(rate)}" for way, rate in (("up", nic.rates.up), ("down", nic.rates.down)) if rate]
    more = [*limits, *([] if nic.up else ["cable pulled"]), *([f"inside it is {nic.inner.address}"] if nic.inner else [])]
    return f"{network} ({', '.join([nic.mac, *more])})"


# What is counted beside the rules: in words that say what became of the packets.
_COUNTED = {"spoofed": "refused, sent from addresses that are not its own", "egress": "refused by its profile"}


def _traffic(card: Any) -> str:
    """``nat (4.1 KiB in, 40 packets; 2.9 KiB out, 36 packets; 2 packets met deny to any)``."""
    received = f"{format_size(card.received)} in, {_packets(card.packets_received)}"
    sent = f"{format_size(card.sent)} out, {_packets(card.packets_sent)}"
    met = [f"{_packets(count)} {_COUNTED.get(rule, f'met {rule}')}" for rule, count in card.rules.items() if count]
    dropped = [f"{card.drops} dropped"] if card.drops else []
    return f"{card.network} ({'; '.join([received, sent, *dropped, *met])})"


def _packets(count: int) -> str:
    return f"{count} packet{'' if count == 1 else 's'}"


def _firewall(firewall: Any) -> str:
    words = [] if firewall.profile == "open" else [firewall.profile]
    words += ["isolated"] if firewall.isolated else []
    return "; ".join([*words, *(format_rule(rule) for rule in firewall.rules)])


def _limits(detail: Any) -> str:
    """``cpu-limit 0.5 (control group, version 1)``; of a machine that is off, what it is to be held to."""
    from insula.model.limits import WORDS, Limits

    if detail.holds:
        return "; ".join(f"{each.limit} {each.asked} ({'' if each.holds else 'NOT HELD: '}{each.by})" for each in detail.holds)
    asked = {field: getattr(detail.limits, field) for field in WORDS if getattr(detail.limits, field) != getattr(Limits(), field)}
    return ", ".join(f"{WORDS[field][0]} {WORDS[field][2](value)}" for field, value in asked.items())


def print_security(security: Any) -> None:
    print_pairs([("name", security.name), ("QEMU", security.qemu)])
    print_table(("LAYER", "STATE", "SEEN"), ((layer.name, str(layer.state), layer.detail) for layer in security.layers))


def _jail(detail: Any) -> str:
    if detail.unjailed:
        return f"without {detail.unjailed} (--insecure)"
    return "whole, or as much of it as the host can have (--insecure)" if detail.insecure else ""


def _shape(detail: Any) -> str:
    sizes = f"{format_size(detail.memory)} memory, {format_size(detail.disk)} disk"
    return f"{detail.cpus} CPU, {sizes}" if detail.cpus else ""


def print_details(detail: Any) -> None:
    ended = detail.ended
    print_pairs(
        [
            ("name", detail.name),
            ("state", _state(detail)),
            ("problem", detail.problem or ""),
            ("ended", f"{ended.reason}, {age(ended.at)} ago{': ' + ended.detail if ended.detail else ''}" if ended else ""),
            ("last words", ended.last_words.rstrip() if ended else ""),
            ("origin", detail.origin),
            ("renewed", ", ".join(detail.renewed.done) if detail.renewed else ""),
            ("not renewed", "; ".join(f"{part} ({why})" for part, why in detail.renewed.left.items()) if detail.renewed else ""),
            ("image", f"{detail.image} ({detail.image_digest[:12]})" if detail.image_digest else detail.image),
            ("shape", _shape(detail)),
            ("next start", detail.next_start or ""),
            ("jail", _jail(detail)),
            ("memory", f"what is freed inside comes back to this host {detail.returns}" if detail.returns else ""),
            ("disk used", format_size(detail.disk_used)),
            ("limits", _limits(detail)),
            ("networks", ", ".join(_card(name, nic) for name, nic in zip(detail.networks, detail.nics, strict=False)) or "none"),
            ("firewall", _firewall(detail.firewall)),
            ("published", ", ".join(format_publish(port) for port in detail.published)),
            ("addresses", ", ".join(detail.addresses)),
            ("traffic", ", ".join(map(_traffic, detail.cards))),
            ("firmware", detail.firmware),
            ("display", detail.display if detail.display != "none" else ""),
            ("tpm", "2.0" if detail.tpm else ""),
            ("board", ", ".join(part for part in (detail.board, detail.cpu_model, detail.accelerator, detail.qemu) if part)),
            ("agent", "answers" if detail.agent else ""),
            ("guest", ", ".join(f"{key} {value}" for key, value in detail.guest.items())),
            ("processes", ", ".join(f"{name} {pid}" for name, pid in detail.process.items())),
            ("created", f"{age(detail.created)} ago" if detail.created else ""),
            ("folder", detail.folder),
        ]
    )
