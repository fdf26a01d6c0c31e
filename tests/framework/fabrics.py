"""What a home's networks look like, seen from outside, and whether that is what its machines should have."""

from __future__ import annotations

import os
import re
import select
import signal
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

from insula.host import links, nft
from insula.host.holder import Spaces, connect_holder
from insula.networks import naming
from insula.networks.forwarders import published
from insula.networks.ground import attached_cards, standing_cards
from insula.operations.observe import is_alive
from insula.store import names
from insula.store.machines import MachineRecord, machine_names, read_machine
from insula.store.names import Home
from insula.store.networks import claims, list_networks
from tests.framework.leaks import nft_tables

_KEY = re.compile(r"_([0-9a-f]{8})$")


def traces(home: Path) -> list[str]:
    """All there is of a home's fabric and of who holds addresses, a line for each; of a home without machines nothing."""
    key = naming.home_key(home)
    found = [f"link {name}" for name in os.listdir("/sys/class/net") if name == naming.host_link(key)]
    found += [f"table {name}" for name in nft_tables() if name.endswith(naming.host_table(key))]
    found += [f"file {path.relative_to(home)}" for path in Home(home).fabric.rglob("*") if not path.is_dir()]
    found += [f"claim {path.relative_to(home)}" for path in Home(home).networks.glob("*/addresses/*")]
    found += [f"half-made {path.name}" for path in Home(home).networks.glob(".*")]
    found += [f"process {pid} {word}" for word, pid in helpers(home)]
    return sorted(found)


def amiss(home: Path) -> list[str]:
    """What of a home's networks is not as its machines' records say, while no command is at work; nothing when all is well."""
    return sorted(_amiss(Home(home)))


def _amiss(home: Home) -> Iterator[str]:
    records = {name: read_machine(home.machine(name)) for name in machine_names(home)}
    alive = {name: record for name, record in records.items() if is_alive(home.machine(name))}
    yield from _differ("claim", _claimed(home), _claimed_by(records.values()))
    cards = {nic.key: nic for record in alive.values() for nic in record.nics}
    hanging = attached_cards(home)
    yield from _differ("card", set(hanging), set(cards))
    for key in hanging.keys() & cards.keys():
        if hanging[key].nic != cards[key]:
            yield f"card {key} is {hanging[key].nic}, not {cards[key]}"
    yield from (f"card {key} still stands by" for key in standing_cards(home))
    ports = {(each.publish, each.machine_id) for each in published(home)}
    yield from _differ("port", ports, {(port, record.id) for record in alive.values() for port in record.published})
    holder = connect_holder(home.fabric / names.HOLDER_SOCKET)
    if holder is None:
        if cards:
            yield "there is no holder"
        return
    with holder:
        yield from _inside(holder.spaces, set(cards))
        forwarders = {name for name in holder.children() if name.endswith(("-tcp", "-udp"))}
        yield from _differ("forwarder", forwarders, {path.stem for path in (home.fabric / names.FABRIC_PORTS).glob("[!.]*")})


def _inside(spaces: Spaces, keys: set[str]) -> Iterator[str]:
    """Links and rules of cards, each of which says whose it is."""
    yield from _differ("tap", {name for name in links.counters(spaces) if name[0] == "t"}, {f"t{key}" for key in keys})
    named = set()
    for each in nft.objects(spaces, "ruleset"):
        kind, value = next(iter(each.items()))
        if kind in ("chain", "set", "counter") and (match := _KEY.search(value["name"])):
            named.add(match[1])
    yield from _differ("rules", named, keys, complete=False)


def _claimed(home: Home) -> set[tuple[str, str, str, str]]:
    return {(record.id, one.machine, one.mac, one.ipv4) for name, record in list_networks(home) for one in claims(home, name)}


def _claimed_by(records: Iterable[MachineRecord]) -> set[tuple[str, str, str, str]]:
    return {(nic.network, record.id, nic.mac, nic.ipv4 or "") for record in records for nic in record.nics}


def _differ(what: str, there: Set[object], wanted: Set[object], *, complete: bool = True) -> Iterator[str]:
    yield from (f"{what} {each} is nobody's" for each in there - wanted)
    if complete:
        yield from (f"{what} {each} is missing" for each in wanted - there)


def helpers(home: Path) -> list[tuple[str, int]]:
    """What serves a home's fabric: names and pids. They hold something open in its folder, or are children of one that does."""
    folder, found = str(Home(home).fabric), []
    sockets = _sockets(folder)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            held = [os.readlink(link) for link in (entry / "fd").iterdir()]
            if any(link.startswith(folder) or link in sockets for link in held):
                found.append(((entry / "comm").read_text().strip(), int(entry.name)))
        except OSError:
            continue
    return found


def _sockets(folder: str) -> set[str]:
    """What descriptors of sockets bound below ``folder`` are links to. Format: proc(5), /proc/net/unix."""
    found = set()
    for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]:
        words = line.split()
        if len(words) > 7 and folder in words[7]:
            found.add(f"socket:[{words[6]}]")
    return found


def kill_helpers(home: Path, *which: str) -> list[str]:
    """End programs of a home's fabric by signal 9, those of these names or, with none, all; return when they have ended."""
    ended = []
    waits = []
    for name, pid in helpers(home):
        if not which or name in which:
            waits.append(os.pidfd_open(pid))
            signal.pidfd_send_signal(waits[-1], signal.SIGKILL)
            ended.append(name)
    for wait in waits:
        assert select.select([wait], [], [], 20)[0], "a process did not end"
        os.close(wait)
    return ended
