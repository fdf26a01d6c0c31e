"""Networks on disk: a folder each, with the record, and in ``addresses/`` one file for each address that a card has.

An address is a card's from the moment its file is there (made by link(2), which only one of two can) until its machine is
deleted, detached, or found gone. So a machine keeps its address whatever else comes and goes, and no two ever have the same.
"""

from __future__ import annotations

import contextlib
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from insula.errors import AlreadyExists, DamagedRecord, HostLacks, NotFound, UsageError, WrongState
from insula.host.files import explain_os_error, fsync, fsync_folder, is_temporary, remove_tree
from insula.model.addresses import slaac_address
from insula.model.names import LONGEST_SHOWN, nearest
from insula.model.network import DEFAULT_NETWORK, NetworkSpec, check_network, check_network_name
from insula.model.text import clean
from insula.store import names
from insula.store.locks import folder_lock
from insula.store.names import Home
from insula.store.records import read_record, write_record

# Where subnets of our own choice begin, as a number, and how many there are.
_SUBNETS: Final = ((10 << 24 | 77 << 16, (128 - 77) * 256), (172 << 24 | 24 << 16, 8 * 256))

RECORD_VERSION = 1
_LAN = "lan-"  # with a card's key: the claim of a card whose address the LAN gives


class NetworkRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What Insula remembers of a network. Its name is its folder's; ``id`` (8 hex digits) is what the kernel calls it by."""

    version: int
    id: str
    spec: NetworkSpec
    created: float


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose an address is: ``machine`` is its id, ``nic`` the key of its card. Both addresses are empty on a bridged network."""

    machine: str
    nic: str
    mac: str
    ipv4: str = ""
    ipv6: str = ""


def network_names(home: Home) -> list[str]:
    """Names of all networks, sorted, whether their records can be read or not."""
    try:
        with os.scandir(home.networks) as entries:
            return sorted(
                entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
            )
    except FileNotFoundError:
        return []


def list_networks(home: Home) -> list[tuple[str, NetworkRecord]]:
    """All networks whose records can be read, by name."""
    found = []
    for name in network_names(home):
        with contextlib.suppress(DamagedRecord, NotFound):
            found.append((name, read_network(home, name)))
    return found


def read_network(home: Home, name: str) -> NetworkRecord:
    """The record of a network. Raises NotFound (with the nearest names there are) or DamagedRecord."""
    if name not in network_names(home):
        shown, close = clean(name, longest=LONGEST_SHOWN), nearest(name, network_names(home))
        hint = f"did you mean {' or '.join(close)}?" if close else f"to make one: insula network create {shown}"
        raise NotFound(f"no network named '{shown}'", code="network_not_found", hint=hint)
    path = home.network(name) / names.NETWORK_RECORD
    try:
        record = read_record(path, NetworkRecord)
    except FileNotFoundError:
        raise DamagedRecord(f"{path} is missing", hint=f"to remove what is left: insula network delete {name}") from None
    if record.version > RECORD_VERSION:
        raise DamagedRecord(
            f"{path} was written by a newer Insula (format {record.version}, this one knows {RECORD_VERSION})",
            hint="use the newer Insula",
        )
    return record


def find_network(home: Home, name: str) -> tuple[str, NetworkRecord]:
    """As `read_network`, with the name."""
    return name, read_network(home, name)


def network_by_id(home: Home, network: str) -> tuple[str, NetworkRecord]:
    """The network with this id. Raises NotFound."""
    for name, record in list_networks(home):
        if record.id == network:
            return name, record
    raise NotFound(
        f"the network with the id {network} is gone", code="network_not_found", hint="to see them: insula network list"
    )


def default_network(home: Home, taken: Iterable[str] = ()) -> tuple[str, NetworkRecord]:
    """The network of a machine for which none was named; made when it is asked for the first time."""
    with contextlib.suppress(NotFound):
        return find_network(home, DEFAULT_NETWORK)
    try:
        return DEFAULT_NETWORK, create_network(home, DEFAULT_NETWORK, NetworkSpec("nat"), taken)
    except AlreadyExists:  # by another command, just now
        return find_network(home, DEFAULT_NETWORK)


def create_network(home: Home, name: str, spec: NetworkSpec, taken: Iterable[str] = ()) -> NetworkRecord:
    """Make a network. One that needs a subnet and names none gets a free one.

    ``taken`` are subnets that are in use without us: the host's routes. Raises AlreadyExists (``name_taken``), UsageError
    (``bad_name``, ``bad_network``, ``subnet_taken``) or HostLacks (``no_space``, ``no_subnet``).
    """
    check_network_name(name)
    home.prepare()
    with folder_lock(home.networks):
        _sweep_folders(home)
        if name in network_names(home):
            hint = "choose another, or delete that network first"
            raise AlreadyExists(f"there is a network named '{name}' already", code="name_taken", hint=hint)
        others = {other: record.spec for other, record in list_networks(home)}
        spec = check_network(_with_subnets(spec, others, [*taken], _first_place(home)))
        _refuse_overlap(spec, others, taken)
        record = NetworkRecord(RECORD_VERSION, _free_id(home), spec, time.time())
        staged = home.networks / f"{names.NEW_PREFIX}{os.urandom(8).hex()}"
        try:
            (staged / names.ADDRESSES).mkdir(mode=0o700, parents=True)
            staged.chmod(0o700)
            write_record(staged / names.NETWORK_RECORD, record)
            staged.rename(home.network(name))
        finally:
            remove_tree(staged)
        fsync_folder(home.networks)
    return record


def sweep_networks(home: Home) -> None:
    """Remove what dead commands left half-made or half-deleted."""
    if home.networks.is_dir():
        with folder_lock(home.networks):
            _sweep_folders(home)


def _sweep_folders(home: Home) -> None:
    """Remove what dead commands left half-made or half-deleted; to be called by who holds the lock all others would need."""
    for folder in home.networks.glob(".*"):
        if folder.name.startswith((names.NEW_PREFIX, names.GONE_PREFIX)):
            remove_tree(folder)


def _free_id(home: Home) -> str:
    known = {record.id for _, record in list_networks(home)}
    while (one := os.urandom(4).hex()) in known:
        pass
    return one


def _with_subnets(spec: NetworkSpec, others: dict[str, NetworkSpec], taken: list[str], begin: int) -> NetworkSpec:
    if spec.mode == "bridge":
        return spec
    if spec.ipv4 is None:
        used = [*taken, *[each.ipv4 for each in others.values() if each.ipv4]]
        spec = msgspec.structs.replace(spec, ipv4=free_subnet(used, begin))
    if spec.ipv6 is None:
        spec = msgspec.structs.replace(spec, ipv6=_new_prefix())
    return spec


def _new_prefix() -> str:
    """A unique local /64, with 40 bits of chance as RFC 4193 asks for, so that no other network anywhere has the same."""
    from ipaddress import IPv6Network

    return str(IPv6Network((0xFD << 120 | int.from_bytes(os.urandom(5)) << 80 | 1 << 64, 64)))


def _first_place(home: Home) -> int:
    """Where a home begins to look for subnets: of two on one computer each sees what the other has only while that runs."""
    return zlib.crc32(os.fsencode(os.path.realpath(home.root)))


def free_subnet(taken: Iterable[str], begin: int = 0) -> str:
    """Pure: the first /24 of 10.77.0.0 to 10.127.255.0, from the one with the number ``begin`` on and around, that touches none
    of ``taken``; where others have all of these, of 172.24.0.0 to 172.31.255.0. Raises HostLacks (``no_subnet``).

    A default route touches nothing.
    """
    from ipaddress import IPv4Network, ip_network

    used = [each for each in map(ip_network, taken) if isinstance(each, IPv4Network) and each.prefixlen]
    for first, count in _SUBNETS:
        for step in range(count):
            subnet = IPv4Network((first + ((begin + step) % count << 8), 24))
            if not any(subnet.overlaps(each) for each in used):
                return str(subnet)
    raise HostLacks(
        "no subnet is free from 10.77.0.0/24 to 10.127.255.0/24, and none from 172.24.0.0/24 to 172.31.255.0/24",
        code="no_subnet",
        hint="name one, e.g. --subnet 192.168.200.0/24",
    )


def _refuse_overlap(spec: NetworkSpec, others: dict[str, NetworkSpec], taken: Iterable[str]) -> None:
    from ipaddress import ip_network

    known = [(f"the network '{name}'", each) for name, other in others.items() for each in (other.ipv4, other.ipv6) if each]
    known += [("a route of this computer", each) for each in taken]
    for wanted in filter(None, (spec.ipv4, spec.ipv6)):
        subnet = ip_network(wanted)
        for whose, each in known:
            other = ip_network(each)
            if other.prefixlen and other.version == subnet.version and subnet.overlaps(other):
                hint = "choose another, or leave it out to get a free one"
                raise UsageError(f"{wanted} overlaps with {each}, {whose}", code="subnet_taken", hint=hint)


def delete_network(home: Home, name: str) -> None:
    """Remove a network that no machine has a card on. Raises NotFound, or WrongState (``network_in_use``)."""
    folder = home.network(name)
    if name not in network_names(home):
        read_network(home, name)  # raises NotFound
    with folder_lock(home.networks), _claiming(home, name):
        if users := {claim.machine for claim in claims(home, name)}:
            count = "a machine has" if len(users) == 1 else f"{len(users)} machines have"
            raise WrongState(
                f"{count} a card on '{name}'",
                code="network_in_use",
                hint=f"to see which: insula network show {name}; then insula network detach, or delete them",
            )
        gone = home.networks / f"{names.GONE_PREFIX}{os.urandom(8).hex()}"
        folder.rename(gone)
        fsync_folder(home.networks)
        remove_tree(gone)


@contextlib.contextmanager
def _claiming(home: Home, name: str) -> Iterator[Path]:
    """Hold what two who change the claims of one network, or delete it, would both need."""
    folder = home.network(name) / names.ADDRESSES
    try:
        folder.mkdir(mode=0o700, exist_ok=True)  # of a network somebody damaged
        with folder_lock(folder):
            yield folder
    except FileNotFoundError:
        read_network(home, name)  # raises NotFound when it was deleted meanwhile
        raise


def claim_address(home: Home, name: str, machine: str, nic: str, mac: str, wanted: str = "") -> Claim:
    """Give a card its addresses on a network, for good; the ones it has when it has them already.

    Its IPv6 address is the one a guest gives itself unasked. ``machine`` is the machine's id, ``nic`` the card's key, ``wanted``
    an IPv4 address it asks for. Where to look for a free one follows from the key, so that none is used again soon. Raises
    NotFound, UsageError (``bad_address``), AlreadyExists (``address_taken``, ``mac_taken``) or HostLacks (``subnet_full``,
    ``no_space``).
    """
    spec = read_network(home, name).spec
    if wanted:
        check_wanted(name, spec, wanted)
    with _claiming(home, name) as folder:
        known = {claim.nic: claim for claim in claims(home, name)}
        former = known.get(nic)
        if former is not None and wanted in ("", former.ipv4):
            return former
        if any(claim.mac == mac for claim in known.values() if claim.nic != nic):
            raise AlreadyExists(
                f"another card on '{name}' has the address {mac}", code="mac_taken", hint="give one of them another"
            )
        claim = Claim(
            machine,
            nic,
            mac,
            wanted or _free_address(folder, name, spec, nic),
            slaac_address(spec.ipv6, mac) if spec.ipv6 else "",
        )
        _put(folder, claim)
        if former is not None:
            _path(folder, former).unlink()
        fsync_folder(folder)
    return claim


def check_wanted(name: str, spec: NetworkSpec, wanted: str) -> None:
    """Raises UsageError (``bad_address``) when no machine on the network ``name`` can have this address."""
    from ipaddress import IPv4Address, IPv4Network

    shown = clean(wanted, longest=LONGEST_SHOWN)
    if spec.ipv4 is None:
        raise UsageError(f"'{name}' is bridged: its addresses are the LAN's", code="bad_address", hint="set it in the guest")
    subnet = IPv4Network(spec.ipv4)
    hint = f"choose one from {subnet[2]} to {subnet[-2]}"
    try:
        address = IPv4Address(wanted)
    except ValueError:
        raise UsageError(f"'{shown}' is no IPv4 address", code="bad_address", hint=hint) from None
    if address not in subnet or address in (subnet[0], subnet[1], subnet[-1]):
        raise UsageError(f"no machine on '{name}' can have {address}", code="bad_address", hint=hint)


def _free_address(folder: Path, name: str, spec: NetworkSpec, nic: str) -> str:
    if spec.ipv4 is None:
        return ""
    from ipaddress import IPv4Network

    subnet, used = IPv4Network(spec.ipv4), set(os.listdir(folder))
    count = subnet.num_addresses - 3  # without the network's, its gateway's and the broadcast address
    begin = int(nic, 16) % count
    for step in range(count):
        if (address := str(subnet[2 + (begin + step) % count])) not in used:
            return address
    raise HostLacks(
        f"all {count} addresses of '{name}' ({subnet}) are taken",
        code="subnet_full",
        hint="delete machines, or make a larger network",
    )


def _path(folder: Path, claim: Claim) -> Path:
    return folder / (claim.ipv4 or f"{_LAN}{claim.nic}")


def _put(folder: Path, claim: Claim) -> None:
    """The claim's file, whole or not at all. Raises AlreadyExists when another has the address."""
    path, temporary = _path(folder, claim), folder / f".{claim.nic}.{os.urandom(4).hex()}"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(msgspec.json.encode(claim) + b"\n")
            stream.flush()
            fsync(stream.fileno())
        os.link(temporary, path)
    except FileExistsError:
        raise AlreadyExists(
            f"{claim.ipv4 or claim.nic} is taken by another machine", code="address_taken", hint="choose another, or none"
        ) from None
    except OSError as cause:
        raise explain_os_error(cause, path) from cause
    finally:
        temporary.unlink(missing_ok=True)


def claims(home: Home, name: str) -> list[Claim]:
    """All claims on a network, by address. Raises DamagedRecord for one that cannot be read."""
    found, folder = [], home.network(name) / names.ADDRESSES
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            if not is_temporary(path.name):
                with contextlib.suppress(FileNotFoundError):  # released just now
                    found.append(read_record(path, Claim))
    return sorted(found, key=lambda claim: ([int(part) for part in claim.ipv4.split(".") if part], claim.nic))


def release_claim(home: Home, name: str, nic: str) -> None:
    """Take a card off a network; nothing happens when it is not on it, or the network is gone."""
    _release(home, name, lambda claim: claim.nic == nic)


def release_card(home: Home, name: str, mac: str) -> None:
    """As `release_claim`, for the card with this address: its key may be another one by now."""
    _release(home, name, lambda claim: claim.mac == mac)


def release_claims(home: Home, machine: str) -> None:
    """Take all cards of the machine with this id off all networks."""
    for name in network_names(home):
        _release(home, name, lambda claim: claim.machine == machine)


def sweep_claims(home: Home, exists: Callable[[str], bool]) -> list[Claim]:
    """Release what is claimed by machines that are gone: of whose ids ``exists`` says no. Returns what was released.

    To be called when no machine is being made, or with an ``exists`` that knows those too.
    """
    return [claim for name in network_names(home) for claim in _release(home, name, lambda claim: not exists(claim.machine))]


def _release(home: Home, name: str, whether: Callable[[Claim], bool]) -> list[Claim]:
    released = []
    with contextlib.suppress(NotFound, FileNotFoundError), _claiming(home, name) as folder:
        for claim in claims(home, name):
            if whether(claim):
                _path(folder, claim).unlink(missing_ok=True)
                released.append(claim)
        for entry in folder.iterdir():
            if is_temporary(entry.name):  # of a command that died: we hold the lock it held
                entry.unlink()
    return released
