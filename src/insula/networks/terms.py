"""The words of nft's own language (nft(8)) that our rules are made of: text, of which a command is one line.

Not its JSON, which nft reads several times slower and in which some of what we need cannot be said. All names follow from keys,
and all values are parsed addresses and numbers: nothing here needs escaping.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

ACCEPT: Final = "accept"
DROP: Final = "drop"
RETURN: Final = "return"
MASQUERADE: Final = "masquerade"
PROHIBITED: Final = "reject with icmpx admin-prohibited"
RESET: Final = "reject with tcp reset"


def payload(protocol: str, field: str) -> str:
    return f"{protocol} {field}"


def raw(base: str, offset: int, length: int) -> str:
    """``length`` bits of a packet from bit ``offset`` of its network (``nh``) or transport (``th``) header."""
    return f"@{base},{offset},{length}"


def meta(key: str) -> str:
    return f"meta {key}"


def ct(key: str) -> str:
    return f"ct {key}"


def link(name: str) -> str:
    """A link's name, or what it begins with and a star."""
    return f'"{name}"'


def concat(*parts: str) -> str:
    return " . ".join(parts)


def match(left: str, right: str | int, op: str = "==") -> str:
    return f"{left} {'' if op == '==' else f'{op} '}{right}"


def either(*values: str | int) -> str:
    """An anonymous set of values, or the one there is."""
    return str(values[0]) if len(values) == 1 else f"{{ {_listed(values)} }}"


def span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def jump(chain: str) -> str:
    return f"jump {chain}"


def goto(chain: str) -> str:
    return f"goto {chain}"


def vmap(key: str, name: str) -> str:
    return f"{key} vmap @{name}"


def counted(name: str) -> str:
    return f'counter name "{name}"'


def put(key: str, value: str | int) -> str:
    """Write into what goes with a packet or its flow."""
    return f"{key} set {value}"


def remember(name: str, value: str, seconds: int, *, limit: str = "") -> str:
    """Put what a packet holds into a set, for so long from now; with ``limit`` (a statement) no oftener than that."""
    return f"update @{name} {{ {value} timeout {seconds}s {limit}}}"


def pair(key: str | int, value: str | int) -> str:
    """An element of a map."""
    return f"{key} : {value}"


def _listed(values: Iterable[str | int]) -> str:
    return ", ".join(map(str, values))


_PUT: Final = "add element "


class Table:
    """Makes commands about one table. ``kind`` is the type of a set's elements, ``more`` what nft(8) allows in its block."""

    def __init__(self, family: str, name: str) -> None:
        self._where = f"{family} {name}"

    def add(self) -> str:
        return f"add table {self._where}"

    def empty(self) -> str:
        """Remove all rules; what they are in stays."""
        return f"flush table {self._where}"

    def delete(self) -> str:
        return f"delete table {self._where}"

    def base_chain(self, name: str, kind: str, hook: str, priority: int, policy: str = "accept") -> list[str]:
        """The chain, without any rule it had."""
        about = f"type {kind} hook {hook} priority {priority}; policy {policy};"
        return [f"add chain {self._where} {name} {{ {about} }}", self.flush(name)]

    def chain(self, name: str, rules: Sequence[Sequence[str]]) -> list[str]:
        """A chain with these rules and no others, whatever it had before."""
        return [f"add chain {self._where} {name}", self.flush(name), *self.rules(name, rules)]

    def flush(self, chain: str) -> str:
        return f"{FLUSH_CHAIN}{self._where} {chain}"

    def rules(self, chain: str, rules: Sequence[Sequence[str]]) -> list[str]:
        return [f"add rule {self._where} {chain} {' '.join(rule)}" for rule in rules]

    def set(self, name: str, kind: str, more: str = "") -> str:
        return f"add set {self._where} {name} {{ type {kind}; {more}}}"

    def set_like(self, name: str, what: str, more: str = "") -> str:
        """A set of what ``what`` finds in packets, where that has no type with a name."""
        return f"add set {self._where} {name} {{ typeof {what}; {more}}}"

    def map(self, name: str, kind: str, to: str = "verdict") -> str:
        return f"add map {self._where} {name} {{ type {kind} : {to}; }}"

    def counter(self, name: str) -> str:
        """A counter that keeps what it counted so far."""
        return f"add counter {self._where} {name}"

    def put(self, name: str, *elements: str | int) -> str:
        return f"{_PUT}{self._where} {name} {{ {_listed(elements)} }}"

    def clear(self, kind: str, name: str) -> str:
        """Take all elements out of a ``set`` or ``map``."""
        return f"flush {kind} {self._where} {name}"

    def only(self, name: str, *elements: str) -> list[str]:
        """A set with these elements and no others."""
        emptied = self.clear("set", name)
        return [emptied, self.put(name, *elements)] if elements else [emptied]

    def release(self, what: Holding) -> list[str]:
        """Remove what is held, whether it is there or not: nft before 1.0.7 has no `destroy`, so all is added first.

        Chains that are not released themselves must be there when elements lead to them.
        """
        chains = [f"chain {self._where} {name}" for name in what.chains]
        elements = [f"element {self._where} {name} {{ {element} }}" for name, element in what.elements]
        counters = [f"counter {self._where} {name}" for name in what.counters]
        commands = [f"add {each}" for each in chains]
        commands += [self.set(name, kind, more) for name, kind, more in what.sets]
        commands += [f"add {each}" for each in (*counters, *elements)]
        commands += [f"delete {each}" for each in elements]
        commands += [f"flush {each}" for each in chains]
        sets = [f"set {self._where} {name}" for name, *_ in what.sets]
        return commands + [f"delete {each}" for each in (*chains, *sets, *counters)]


FLUSH_CHAIN: Final = "flush chain "


class Holding(msgspec.Struct, frozen=True):
    """What a card or network has in a table: all that must go with it. ``chains`` lead to none but those before them; of each
    set the arguments of `Table.set`."""

    chains: tuple[str, ...] = ()
    elements: tuple[tuple[str, str], ...] = ()
    sets: tuple[tuple[str, str, str], ...] = ()
    counters: tuple[str, ...] = ()

    def without(self, other: Holding) -> Holding:
        """What is held here and not by ``other``."""
        return Holding(
            tuple(each for each in self.chains if each not in other.chains),
            tuple(each for each in self.elements if each not in other.elements),
            tuple(each for each in self.sets if each not in other.sets),
            tuple(each for each in self.counters if each not in other.counters),
        )


def gathered(commands: Iterable[str]) -> list[str]:
    """The same additions with all elements of each set in one command, at the end: what they lead to is there by then."""
    others: list[str] = []
    sets: dict[str, list[str]] = {}
    for command in commands:
        if command.startswith(_PUT):
            which, _, elements = command.removesuffix(" }").partition(" { ")
            sets.setdefault(which, []).append(elements)
        else:
            others.append(command)
    return others + [f"{which} {{ {_listed(elements)} }}" for which, elements in sets.items()]
