"""What QEMU is told around a migration, in which order: with a double that records it and answers as QEMU does."""

from __future__ import annotations

from typing import Any, cast

import pytest

from insula.engines.qemu.outgoing import capable
from insula.engines.qemu.qmp import Monitor
from insula.errors import InsulaError


class _Double:
    """Knows a migration for as long as it was not asked ``looks`` times whether it is over."""

    def __init__(self, looks: int) -> None:
        self.looks, self.told = looks, list[str]()

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> object:
        if command == "migrate-set-capabilities":
            command += " on" if (arguments or {})["capabilities"][0]["state"] else " off"
        self.told.append(command)
        if command == "query-yank":
            self.looks -= 1
            return [{"type": "migration"}] if self.looks > 0 else []
        return {}


_TIDIED = ["query-yank"] * 3  # else its channels stay, and the next save aborts it


def test_nothing_is_turned_off_before_qemu_has_tidied_up() -> None:
    double = _Double(len(_TIDIED))
    with capable(cast("Monitor", double), "multifd"):
        pass
    assert double.told == ["migrate-set-capabilities on", *_TIDIED, "migrate-set-capabilities off"]


@pytest.mark.parametrize("failure", [InsulaError("no space", code="no_space"), KeyboardInterrupt()])
def test_nor_is_it_when_it_failed(failure: BaseException) -> None:
    double = _Double(len(_TIDIED))
    with pytest.raises(type(failure)), capable(cast("Monitor", double), "multifd"):
        raise failure
    assert double.told == ["migrate-set-capabilities on", "migrate_cancel", *_TIDIED, "migrate-set-capabilities off"]
