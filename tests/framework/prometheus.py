"""A strict reader of Prometheus's text exposition format, version 0.0.4: what it does not know is an error.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_METRIC = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_HELP = re.compile(rf"# HELP ({_METRIC}) (\S(?:[^\\\n]|\\\\|\\n)*)")
_TYPE = re.compile(rf"# TYPE ({_METRIC}) (counter|gauge)")
_SAMPLE = re.compile(rf"({_METRIC})(?:\{{(.*)\}})? ([^ ]+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"(,|$)')
_ESCAPED = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}

Labels = frozenset[tuple[str, str]]


@dataclass
class Family:
    kind: str = ""
    values: dict[Labels, float] = field(default_factory=dict)

    def value(self, **labels: str) -> float:
        return self.values[frozenset(labels.items())]


def parse(text: str) -> dict[str, Family]:
    """The families, each told once and whole: its help, its type, then its values, none of them twice."""
    assert text.endswith("\n"), "the last line must end"
    families: dict[str, Family] = {}
    described = ""
    for line in text[:-1].split("\n"):
        if match := _HELP.fullmatch(line):
            described = match[1]
            assert described not in families, f"{described} is described twice"
            families[described] = Family()
        elif match := _TYPE.fullmatch(line):
            family = families[match[1]]
            assert match[1] == described, f"the type of {match[1]} is not by its help"
            assert not family.kind, f"{match[1]} has two types"
            assert not family.values, f"the type of {match[1]} comes after its values"
            assert (match[2] == "counter") == match[1].endswith("_total"), f"{match[1]} is called as what it is not"
            family.kind = match[2]
        else:
            match = _SAMPLE.fullmatch(line)
            assert match, f"no line of the format: {line!r}"
            assert match[1] == described, f"a value of {match[1]} is not with the others"
            family = families[described]
            assert family.kind, f"{described} has no type"
            labels = _labels(match[2] or "")
            assert labels not in family.values, f"told twice: {line!r}"
            family.values[labels] = float(match[3])
            assert family.kind != "counter" or family.values[labels] >= 0
    assert all(family.values for family in families.values())
    return families


def _labels(text: str) -> Labels:
    found: dict[str, str] = {}
    while text:
        match = _LABEL.match(text)
        assert match, f"no labels: {text!r}"
        assert match[1] not in found
        found[match[1]] = re.sub(r"\\.", lambda escape: _ESCAPED[escape[0]], match[2])
        text = text[match.end() :]
    return frozenset(found.items())
