"""Guests that do not come up: what happened is told, soon and by its name, and the machine is stopped as before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import insula
from insula.errors import GuestError, MachineEnded
from insula.store import names

pytestmark = [pytest.mark.guest, pytest.mark.limit(120)]


def _with_words(home: Path, tiny: str, name: str, words: str) -> insula.Machine:
    """A machine whose kernel gets further ``words``."""
    machine = insula.connect(home).create(tiny, name=name, memory="128M", network="none")
    path = home / "machines" / name / names.RECORD
    record = json.loads(path.read_bytes())
    record["boot"]["cmdline"] += f" {words}"
    path.write_text(json.dumps(record))
    return machine


def test_a_guest_that_is_reset_again_and_again_is_told_long_before_the_timeout(home: Path, tiny: str, name: str) -> None:
    """It panics before the module is loaded that would tell of it, and the kernel was told to reboot then."""
    machine = _with_words(home, tiny, name, "rdinit=/nothing")
    with pytest.raises(GuestError, match=r"was reset 3 times while booting: .*Kernel panic - not syncing: VFS") as error:
        machine.start(timeout=1000)
    assert error.value.code == "guest_resets"
    assert f"insula logs {name}" in (error.value.hint or "")
    assert machine.state == "stopped"
    assert not (home / "machines" / name / names.RUN).exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("insula.init=/nothing", "insula-agent: cannot run /nothing: No such file"),
        pytest.param("insula.root=/dev/nothing", "insula-agent: no root device /dev/nothing", marks=pytest.mark.full),
    ],
)
def test_an_agent_that_cannot_bring_the_guest_up_is_no_shutdown(home: Path, tiny: str, name: str, words: str, said: str) -> None:
    machine = _with_words(home, tiny, name, words)
    with pytest.raises(MachineEnded, match=f"{said}.*Kernel panic - not syncing: Attempted to kill init") as error:
        machine.start()
    assert error.value.code == "guest_panic"
    assert machine.status.ended is not None
    assert machine.status.ended.reason == "guest-panic"
