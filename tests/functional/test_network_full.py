"""A network that has no address left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from insula.store.names import Home
from insula.store.networks import claims
from tests.framework.doors import run_cli

pytestmark = [pytest.mark.root, pytest.mark.limit(180)]


@pytest.mark.full
def test_a_network_that_is_full_takes_nobody_more_and_loses_nobody(home: Path, tiny: str, forget: Callable[[str], None]) -> None:
    def cli(*words: str) -> dict[str, object]:
        """What is told as JSON, or why it is refused."""
        done = run_cli(home, *words, *([] if "--json" in words else ["--json"]))
        told: dict[str, object] = json.loads(done.stdout if done.returncode == 0 else done.stderr.splitlines()[-1])
        return told

    def make(number: int) -> dict[str, object]:
        forget(f"small-{number}")
        return cli("create", "--name", f"small-{number}", "--network", "small", "--memory", "128M", tiny)

    assert cli("network", "create", "--mode", "private", "--subnet", "10.88.7.0/29", "small")["ipv4"] == "10.88.7.0/29"
    for number in range(5):
        assert make(number)["state"] == "stopped"
    forget("outsider")
    assert cli("create", "--name", "outsider", "--network", "none", tiny)["state"] == "stopped"
    assert run_cli(home, "start", "small-0").returncode == 0
    before = machines(home), claims_of(home)
    forget("late")
    for words in (
        ("create", "--name", "late", "--network", "small", tiny),
        ("run", "--json", "--name", "late", "--network", "nat", "--network", "small", tiny),
        ("fork", "--json", "--name", "late", "small-0"),
        ("network", "attach", "small", "outsider"),
    ):
        refusal = cli(*words)
        assert (refusal["code"], refusal["hint"]) == ("subnet_full", "delete machines, or make a larger network"), words
    assert (machines(home), claims_of(home)) == before
    assert run_cli(home, "exec", "small-0", "--", "true").returncode == 0
    assert run_cli(home, "delete", "small-4").returncode == 0
    assert make(4)["state"] == "stopped"
    assert run_cli(home, "delete", "--force", "outsider", *(f"small-{number}" for number in range(5))).returncode == 0
    assert run_cli(home, "network", "delete", "small").returncode == 0


def machines(home: Path) -> list[tuple[object, object, object]]:
    told = json.loads(run_cli(home, "list", "--json").stdout)
    return [(machine["name"], machine["state"], machine["addresses"]) for machine in told]


def claims_of(home: Path) -> list[tuple[str, str]]:
    """What addresses of the network are given away, and to which machines."""
    return [(claim.ipv4, claim.machine) for claim in claims(Home(home), "small")]
