"""Networks: make, list, show, delete and repair them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from insula.errors import Busy, HostLacks, InsulaError, NotFound, WrongState
from insula.model.network import NetworkSpec, check_network, check_network_name
from insula.model.network_requests import CreateNetwork, DeleteNetwork, ListNetworks, RepairNetworks, ShowNetwork
from insula.model.status import NetworkDetails, NetworkMember, NetworkStatus
from insula.operations.cards import has_fabric
from insula.operations.context import Context
from insula.operations.observe import is_alive, observe
from insula.operations.operation import Operation
from insula.operations.recover import recover
from insula.operations.rewire import rewire
from insula.store import names
from insula.store.locks import folder_lock, machine_lock
from insula.store.machines import MachineRecord, machine_names, read_machine
from insula.store.networks import NetworkRecord, sweep_networks

_NAMED = 5  # machines named to whoever wants to delete the network they are on


def create(context: Context, request: CreateNetwork, operation: Operation) -> NetworkStatus:
    """Make a network. Raises UsageError, AlreadyExists (``subnet_taken`` too), HostLacks (``no_fabric``); then there is none."""
    from insula.host.links import routes
    from insula.networks.ability import probe
    from insula.networks.lan import check_parent
    from insula.networks.naming import home_key, host_link
    from insula.store.networks import create_network

    check_network_name(request.name)
    spec = NetworkSpec(
        mode=request.mode, ipv4=request.ipv4 or None, ipv6=request.ipv6 or None, parent=request.parent or None,
        vlan=request.vlan, isolated=request.isolated,
    )  # fmt: skip
    if spec.mode == "bridge" or spec.ipv4:
        check_network(spec)
    context.home.prepare()
    if not has_fabric(context) or (request.mode == "bridge" and probe(context.home).kind != "root"):
        raise HostLacks(
            f"this host can make no {request.mode} network: {probe(context.home).why or 'that needs root'}",
            code="no_fabric",
            hint="see what is missing: insula doctor",
        )
    if spec.mode == "bridge":
        check_parent(spec)
    else:
        operation.tell("choose its subnets")
    record = create_network(context.home, request.name, spec, routes(except_link=host_link(home_key(context.home.root))))
    return _status(request.name, record, {})


def list_networks(context: Context, request: ListNetworks, operation: Operation) -> list[NetworkStatus]:
    """All networks, by name; the default one once it was used."""
    del request, operation
    from insula.store.networks import list_networks as stored

    members = _members(context)
    return [_status(name, record, members) for name, record in stored(context.home)]


def show(context: Context, request: ShowNetwork, operation: Operation) -> NetworkDetails:
    """A network and who hangs on it. Raises NotFound."""
    del operation
    from insula.store.networks import find_network

    name, record = find_network(context.home, request.name)
    members = _members(context)
    status = _status(name, record, members)
    blocked = [*_cut_off(context, [(name, record)]), *(_blocked(context) if record.spec.mode == "nat" else [])]
    return NetworkDetails(
        **msgspec.structs.asdict(status), id=record.id, fabric=_fabric(context), resolver=_resolver(context, record),
        members=members.get(record.id, []), blocked=blocked,
    )  # fmt: skip


def delete(context: Context, request: DeleteNetwork, operation: Operation) -> NetworkStatus:
    """Delete a network that no machine is on. Raises NotFound, WrongState (``network_in_use``)."""
    from insula.store.networks import delete_network, find_network

    name, record = find_network(context.home, request.name)
    members = _members(context)
    if users := members.get(record.id):
        raise _in_use(name, [user.machine for user in users])
    operation.tell("delete it")
    _release_what_is_gone(context)
    delete_network(context.home, name)
    return _status(name, record, {})


def _in_use(name: str, users: list[str]) -> WrongState:
    """The error that names them, and the commands that take them off; of many, the first."""
    few = users[:_NAMED]
    detach = " && ".join(f"insula network detach {name} {user}" for user in few)
    more = f" … (all of them: insula network show {name})" if users[_NAMED:] else ""
    return WrongState(
        f"{name} is in use by {', '.join(few)}{f' and {len(users) - _NAMED} more' if more else ''}",
        code="network_in_use",
        hint=f"take {'it' if len(users) == 1 else 'them'} off first: {detach}{more}",
    )


def _release_what_is_gone(context: Context) -> None:
    """Claims of machines whose deletion died half-way. Nobody makes a machine meanwhile."""
    from insula.store.networks import sweep_claims

    with folder_lock(context.home.machines):
        there = set[str]()
        for folder in (*context.home.machines.glob("*"), *context.home.spares.glob("*/*"), *context.home.warm.glob("*")):
            if not (folder / names.RECORD).exists():
                continue
            try:
                there.add(read_machine(folder).id)
            except (InsulaError, OSError):
                return  # whose it is nobody can say: nothing is taken from anybody
        sweep_claims(context.home, there.__contains__)


def repair(context: Context, request: RepairNetworks, operation: Operation) -> list[str]:
    """Make links, rules and helpers be again what running machines need; returns what was not so, in words."""
    del request
    from insula.networks.counted import status
    from insula.networks.fabric import repair as make_so
    from insula.store.networks import list_networks as stored

    operation.tell("look at links, rules and helpers")
    before = status(context.home)
    make_so(context.home)
    told = [f"{program} had ended: started again" for program in before.missing]
    for name in machine_names(context.home):
        told += _rewired(context, context.home.machine(name))
    with contextlib.suppress(InsulaError, OSError):
        _release_what_is_gone(context)
    sweep_networks(context.home)
    used = {card.attached.nic.network for card in before.cards.values()}
    told += _cut_off(context, [(name, record) for name, record in stored(context.home) if record.id in used])
    return [*told, *(_blocked(context) if before.running else [])]


def _rewired(context: Context, folder: Path) -> list[str]:
    """Make right what hangs on networks for a machine; what came of it, in words."""
    name = folder.name
    try:
        with machine_lock(folder / names.LOCK, name, "recover"):
            if not recover(context, folder):
                return []
            return [f"{name} {line}" for line in rewire(context, folder, alive=is_alive(folder))]
    except (Busy, NotFound):
        return []  # its verb is at work, not dead
    except InsulaError as refusal:
        return [f"{name} is not on its networks as it should be: restart it ({refusal.message})"]
    except OSError:
        return []


def _fabric(context: Context) -> str:
    from insula.networks.ability import probe

    return probe(context.home).kind


def _resolver(context: Context, record: NetworkRecord) -> str:
    """Where the host can ask for names of this network: without root it has no way in there."""
    from insula.networks.ability import probe
    from insula.networks.plan import gateway4

    reachable = record.spec.mode == "nat" and probe(context.home).kind == "root" and has_fabric(context)
    return gateway4(record.spec) or "" if reachable else ""


def _blocked(context: Context) -> list[str]:
    """What keeps machines of NAT networks from the outside, in words; others' packet filters do so only as root."""
    from insula.networks.ability import probe
    from insula.networks.naming import home_key
    from insula.networks.strangers import who_blocks
    from insula.networks.uplinks import world_is_there

    if not world_is_there():
        return ["this host itself has no way out: it has no default route"]
    if probe(context.home).kind != "root":
        return []
    return [f"{each.words()}; to let machines out: {each.fix}" for each in who_blocks(home_key(context.home.root))]


def _cut_off(context: Context, networks: Iterable[tuple[str, NetworkRecord]]) -> list[str]:
    """Networks that lead nowhere, because what they lead by is gone, or somebody else's by now, in words."""
    from insula.host import links
    from insula.networks.ability import probe
    from insula.networks.naming import home_key
    from insula.networks.uplinks import taken

    found = []
    for name, record in networks:
        spec = record.spec
        if spec.mode == "bridge" and not links.exists(str(spec.parent)):
            found.append(
                f"{name} is on '{spec.parent}', which this host does not have any more; to see what it has: ip -brief link"
            )
        elif spec.mode == "nat" and probe(context.home).kind == "root" and (other := taken(home_key(context.home.root), spec)):
            found.append(
                f"{name} has addresses of {other}, which this host sends elsewhere; to see who has it: ip route show {other}"
            )
    return found


def _members(context: Context) -> dict[str, list[NetworkMember]]:
    """By network id, the cards that are on it."""
    found: dict[str, list[NetworkMember]] = {}
    for name in machine_names(context.home):
        status, record = observe(context.home.machine(name))
        for nic in record.nics if isinstance(record, MachineRecord) else []:
            addresses = [address for address in (nic.ipv4, nic.ipv6) if address]
            member = NetworkMember(name, status.state, nic.mac, addresses, nic.up, f"t{nic.key}")
            found.setdefault(nic.network, []).append(member)
    return found


def _status(name: str, record: NetworkRecord, members: dict[str, list[NetworkMember]]) -> NetworkStatus:
    spec = record.spec
    return NetworkStatus(
        name=name, mode=spec.mode, ipv4=spec.ipv4, ipv6=spec.ipv6, machines=len(members.get(record.id, [])), parent=spec.parent,
        vlan=spec.vlan, isolated=spec.isolated, created=record.created,
    )  # fmt: skip
