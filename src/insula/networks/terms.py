"""The words of nft's JSON (libnftables-json(5)) that our rules are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]  # one object of libnftables-json: its shape is checked by nft itself, and by loading it in tests

ACCEPT: Json = {"accept": None}
DROP: Json = {"drop": None}
RETURN: Json = {"return": None}
PROHIBITED: Json = {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}
RESET: Json = {"reject": {"type": "tcp reset"}}


def payload(protocol: str, field: str) -> Json:
    return {"payload": {"protocol": protocol, "field": field}}


def raw(base: str, offset: int, length: int) -> Json:
    """``length`` bits of a packet from bit ``offset`` of its network (``nh``) or transport (``th``) header."""
    return {"payload": {"base": base, "offset": offset, "len": length}}


def meta(key: str) -> Json:
    return {"meta": {"key": key}}


def ct(key: str) -> Json:
    return {"ct": {"key": key}}


def concat(*parts: Any) -> Json:
    return {"concat": list(parts)}


def match(left: Json, right: Any, op: str = "==") -> Json:
    return {"match": {"op": op, "left": left, "right": right}}


def either(*values: Any) -> Any:
    """An anonymous set of values, or the one there is."""
    return values[0] if len(values) == 1 else {"set": list(values)}


def subnet(text: str) -> Any:
    """An address or subnet as a value."""
    address, slash, length = text.partition("/")
    return {"prefix": {"addr": address, "len": int(length)}} if slash else address


def span(first: int, last: int) -> Any:
    return first if first == last else {"range": [first, last]}


def jump(chain: str) -> Json:
    return {"jump": {"target": chain}}


def vmap(key: Json, name: str) -> Json:
    return {"vmap": {"key": key, "data": f"@{name}"}}


def counted(name: str) -> Json:
    return {"counter": name}


def remember(name: str, value: Json, seconds: int) -> Json:
    """Put what a packet holds into a set, for so long from now."""
    return {"set": {"op": "update", "elem": {"elem": {"val": value, "timeout": seconds}}, "set": f"@{name}"}}


class Table:
    """Makes commands about one table."""

    def __init__(self, family: str, name: str) -> None:
        self._where = {"family": family, "table": name}
        self._self = {"family": family, "name": name}

    def add(self) -> Json:
        return {"add": {"table": self._self}}

    def empty(self) -> Json:
        """Remove all rules; what they are in stays."""
        return {"flush": {"table": self._self}}

    def delete(self) -> Json:
        return {"delete": {"table": self._self}}

    def base_chain(self, name: str, kind: str, hook: str, priority: int, policy: str = "accept") -> list[Json]:
        """The chain, without any rule it had."""
        chain = {"type": kind, "hook": hook, "prio": priority, "policy": policy}
        return [{"add": {"chain": {**self._where, "name": name, **chain}}}, self.flush(name)]

    def chain(self, name: str, rules: Sequence[Sequence[Json]]) -> list[Json]:
        """A chain with these rules and no others, whatever it had before."""
        return [{"add": {"chain": {**self._where, "name": name}}}, self.flush(name), *self.rules(name, rules)]

    def flush(self, chain: str) -> Json:
        return {"flush": {"chain": {**self._where, "name": chain}}}

    def rules(self, chain: str, rules: Sequence[Sequence[Json]]) -> list[Json]:
        return [{"add": {"rule": {**self._where, "chain": chain, "expr": list(rule)}}} for rule in rules]

    def set(self, name: str, kind: Any, **more: Any) -> Json:
        return {"add": {"set": {**self._where, "name": name, "type": kind, **more}}}

    def map(self, name: str, kind: Any, to: str = "verdict") -> Json:
        return {"add": {"map": {**self._where, "name": name, "type": kind, "map": to}}}

    def counter(self, name: str) -> Json:
        """A counter that keeps what it counted so far."""
        return {"add": {"counter": {**self._where, "name": name}}}

    def put(self, name: str, *elements: Any) -> Json:
        return {"add": {"element": {**self._where, "name": name, "elem": list(elements)}}}

    def clear(self, kind: str, name: str) -> Json:
        """Take all elements out of a ``set`` or ``map``."""
        return {"flush": {kind: {**self._where, "name": name}}}

    def only(self, name: str, *elements: Any) -> list[Json]:
        """A set with these elements and no others."""
        emptied = self.clear("set", name)
        return [emptied, self.put(name, *elements)] if elements else [emptied]

    def release(self, what: Holding) -> list[Json]:
        """Remove what is held, whether it is there or not: nft before 1.0.7 has no `destroy`, so all is added first.

        Chains that are not released themselves must be there when elements lead to them.
        """
        chains = [{"chain": {**self._where, "name": name}} for name in what.chains]
        elements = [{"element": {**self._where, "name": name, "elem": [element]}} for name, element in what.elements]
        sets = [self.set(name, kind, **more)["add"] for name, kind, more in what.sets]
        counters = [{"counter": {**self._where, "name": name}} for name in what.counters]
        commands: list[Json] = [{"add": each} for each in (*chains, *sets, *counters, *elements)]
        commands += [{"delete": each} for each in elements]
        commands += [{"flush": each} for each in chains]
        return commands + [{"delete": each} for each in (*chains, *sets, *counters)]


@dataclass(frozen=True)
class Holding:
    """What a card or network has in a table: all that must go with it. ``chains`` lead to none but those before them."""

    chains: tuple[str, ...] = ()
    elements: tuple[tuple[str, Any], ...] = ()
    sets: tuple[tuple[str, Any, dict[str, Any]], ...] = ()
    counters: tuple[str, ...] = ()

    def without(self, other: Holding) -> Holding:
        """What is held here and not by ``other``."""
        return Holding(
            tuple(each for each in self.chains if each not in other.chains),
            tuple(each for each in self.elements if each not in other.elements),
            tuple(each for each in self.sets if each not in other.sets),
            tuple(each for each in self.counters if each not in other.counters),
        )


def gathered(commands: Iterable[Json]) -> list[Json]:
    """The same additions with all elements of each set in one command, at the end: what they lead to is there by then."""
    others: list[Json] = []
    sets: dict[tuple[str, str, str], Json] = {}
    for command in commands:
        element = command.get("add", {}).get("element")
        if element is None:
            others.append(command)
            continue
        which = (element["family"], element["table"], element["name"])
        whole = sets.setdefault(which, {**element, "elem": []})
        whole["elem"] += element["elem"]
    return others + [{"add": {"element": each}} for each in sets.values()]
