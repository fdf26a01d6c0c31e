"""Rules of 200 machines, loaded into an empty namespace: ours as planned, and the very same ones written down by hand."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

import msgspec

from bench.pairs import Pairs, interleave
from bench.world import World, scratch
from insula.model.addresses import slaac_address
from insula.model.network import Firewall, NetworkSpec, Nic, parse_rule
from insula.networks import plan, rules
from insula.networks.plan import Attached
from insula.networks.terms import Json

_MACHINES: Final = 200
_NETWORK: Final = "00000001"
_PREFIX: Final = "fd12:3456:789a:1::/64"
_SPEC: Final = NetworkSpec("nat", "10.77.0.0/16", _PREFIX)
_RULES: Final = ("deny to 10.0.0.0/8", "allow to 10.77.0.3 tcp 80-90", "deny to any 53", "deny from 10.77.0.9")
_FIREWALL: Final = Firewall("internet-only", rules=tuple(map(parse_rule, _RULES)))
_UPLINK: Final = plan.choose_uplink(_NETWORK, [])

_OURS: Final = 'nft -f "$1" && nft -j -f "$2" && nft -j -f "$3"'
_THEIRS: Final = 'nft -f "$1"'


def load(_world: World, n: int) -> Pairs:
    """Ours begins with what is wanted, as a repair does; theirs with text that is there already."""
    with scratch() as folder:
        text = folder / "rules.nft"
        text.write_text(_inside(f"{_OURS} && nft -s list ruleset", *_planned(folder)))
        return interleave(lambda: _inside(_OURS, *_planned(folder)), lambda: _inside(_THEIRS, text), n)


def _planned(folder: Path) -> tuple[Path, Path, Path]:
    """What is loaded, a file for each transaction."""
    cards = [_card(number) for number in range(1, _MACHINES + 1)]
    prelude, sets, everything = folder / "prelude.nft", folder / "sets.json", folder / "rules.json"
    prelude.write_text(rules.PRELUDE)
    _write(sets, [command for card in cards for command in rules.nic_sets(card)])
    _write(everything, rules.everything(_UPLINK, [], {_NETWORK: _SPEC}, cards))
    return prelude, sets, everything


def _write(path: Path, commands: list[Json]) -> None:
    path.write_bytes(msgspec.json.encode({"nftables": commands}))


def _card(number: int) -> Attached:
    mac = f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}"
    nic = Nic(f"{number:08x}", _NETWORK, mac, f"10.77.1.{number}", slaac_address(_PREFIX, mac))
    return Attached(nic, f"m{number}", f"id-{number}", _SPEC, _FIREWALL)


def _inside(script: str, *paths: Path) -> str:
    """What a script says in a new network namespace, which ends with it."""
    own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    argv = ["unshare", *own, "--net", "--", "sh", "-ec", script, "sh", *map(str, paths)]
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout
