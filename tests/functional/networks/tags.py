"""What a network on a VLAN of the LAN promises, for each way there is onto a LAN. Most kernels make VLANs; where the one at hand
does not, `python3 -m tests.functional.networks.tags` tries it all in a guest whose kernel does."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from tests.functional.networks.world import World, world

# Through a bridge of the host, one that lets only those tags by that a port is told to have, or beside the host's card.
WAYS: Final = {"bridge": "5e000005", "filtering bridge": "5e000005", "card": "6f000006"}
_ITS, _ELSEWHERE, _TAGGED = "198.18.7.2", "198.18.7.3", "198.18.7.1"


def check(lan: World, way: str) -> None:
    """A machine's frames bear the tag on the LAN, and those of others it does not see; afterwards nothing of it is left."""
    if way != "card":
        lan.make_bridge(filters=way == "filtering bridge")
    lan.host.attach("a", 10, WAYS[way])
    lan.host.attach("b", 11, WAYS[way])
    lan.host.configure("a", _ITS)
    lan.host.configure("b", "198.18.7.4")
    assert lan.machine("a").ping("198.18.7.4")
    lan.other.run(["ip", "address", "add", f"{_ELSEWHERE}/24", "dev", "eth0"])
    assert not lan.machine("a").ping(_ELSEWHERE, 1.0)
    lan.other.run(["ip", "address", "delete", f"{_ELSEWHERE}/24", "dev", "eth0"])
    for words in (
        ["add", "link", "eth0", "name", "tagged", "type", "vlan", "id", "7"],
        ["add", "link", "eth0", "name", "other", "type", "vlan", "id", "8"],
        ["set", "tagged", "up"],
        ["set", "other", "up"],
    ):
        assert lan.other.run(["ip", "link", *words])[0] == 0
    lan.other.run(["ip", "address", "add", f"{_ELSEWHERE}/24", "dev", "other"])
    assert not lan.machine("a").ping(_ELSEWHERE, 1.0)
    lan.other.run(["ip", "link", "delete", "other"])
    lan.other.run(["ip", "address", "add", f"{_TAGGED}/24", "dev", "tagged"])
    assert lan.machine("a").ping(_TAGGED)
    assert lan.other.ping(_ITS)
    lan.host.end("a")
    assert lan.machine("b").ping(_TAGGED)
    lan.host.end("b")


def main() -> None:
    for way in WAYS:
        with tempfile.TemporaryDirectory() as folder, world(Path(folder), ordinary=False) as lan:
            check(lan, way)
            assert lan.host.remains() == []
        print(way, flush=True)


if __name__ == "__main__":
    main()
