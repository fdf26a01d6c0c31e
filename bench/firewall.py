"""Rules of 200 machines, loaded into an empty namespace: ours as planned, and the very same ones written down by hand."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

from bench.pairs import Pairs, interleave
from bench.world import World, scratch
from insula.model.addresses import slaac_address
from insula.model.network import Firewall, NetworkSpec, Nic, parse_rule
from insula.networks import plan, rules
from insula.networks.plan import Attached

_MACHINES: Final = 200
_NETWORK: Final = "00000001"
_PREFIX: Final = "fd12:3456:789a:1::/64"
_SPEC: Final = NetworkSpec("nat", "10.77.0.0/16", _PREFIX)
_RULES: Final = ("deny to 10.0.0.0/8", "allow to 10.77.0.3 tcp 80-90", "deny to any 53", "deny from 10.77.0.9")
_FIREWALL: Final = Firewall("internet-only", rules=tuple(map(parse_rule, _RULES)))
_UPLINK: Final = plan.choose_uplink(_NETWORK, [])

_LOAD: Final = 'nft -f "$1"'


def load(_world: World, n: int) -> Pairs:
    """Ours begins with what is wanted, as a repair does; theirs with text that is there already."""
    with scratch() as folder:
        text = folder / "rules.nft"
        text.write_text(_inside(f"{_LOAD} && nft -s list ruleset", _planned(folder)))
        return interleave(lambda: _inside(_LOAD, _planned(folder)), lambda: _inside(_LOAD, text), n)


def _planned(folder: Path) -> Path:
    cards = [_card(number) for number in range(1, _MACHINES + 1)]
    path = folder / "planned.nft"
    path.write_text("".join(f"{command}\n" for command in rules.everything(_UPLINK, [], {_NETWORK: _SPEC}, cards)))
    return path


def _card(number: int) -> Attached:
    mac = f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}"
    nic = Nic(f"{number:08x}", _NETWORK, mac, f"10.77.1.{number}", slaac_address(_PREFIX, mac))
    return Attached(nic, f"m{number}", f"id-{number}", _SPEC, _FIREWALL)


def _inside(script: str, path: Path) -> str:
    """What a script says in a new network namespace, which ends with it."""
    own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    argv = ["unshare", *own, "--net", "--", "sh", "-ec", script, "sh", str(path)]
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout
