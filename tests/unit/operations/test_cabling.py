"""Which cards a machine has: at its making, as a fork, and when it goes back to a snapshot."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from insula.engines.fake.engine import FakeEngine
from insula.errors import HostLacks, NotFound
from insula.model.identity import new_identity
from insula.model.limits import Limits
from insula.model.network import Firewall, NetworkSpec, Nic, Rates
from insula.model.spec import MachineSpec
from insula.operations.cabling import check_holds, narrowed
from insula.operations.cards import are_elsewhere, free_slot, like_before, with_cards, with_restored_cards
from insula.operations.context import Context
from insula.store.machines import RECORD_VERSION, Boot, ImageUse, MachineRecord
from insula.store.names import Home
from insula.store.networks import create_network, default_network
from insula.store.snapshots import SNAPSHOT_VERSION, SnapshotRecord


@pytest.fixture
def context(tmp_path: Path) -> Context:
    home = Home(tmp_path)
    home.prepare()
    default_network(home)
    for name in ("lab", "cell"):
        create_network(home, name, NetworkSpec("private"))
    return Context(home, FakeEngine(home))


def machine(*networks: str) -> MachineRecord:
    identity = new_identity()
    return MachineRecord(
        version=RECORD_VERSION, id=identity.uuid, kind="vm", created=1.0, image=ImageUse("tiny", "0" * 64),
        spec=MachineSpec(networks=networks), identity=identity, boot=Boot("direct"), disks=[], arch="amd64",
    )  # fmt: skip


def state_of(record: MachineRecord) -> SnapshotRecord:
    return SnapshotRecord(
        version=SNAPSHOT_VERSION, id="00000000-0000-4000-8000-000000000000", created=1.0, description="", state="running",
        parent=None, image=record.image, spec=record.spec, identity=record.identity, boot=record.boot, arch=record.arch,
        board=None, disks=[], memory=None, sums={}, nics=record.nics,
    )  # fmt: skip


def where(context: Context, record: MachineRecord) -> list[tuple[str, str]]:
    """Each card's network and MAC."""
    from insula.store.networks import network_by_id

    return [(network_by_id(context.home, nic.network)[0], nic.mac) for nic in record.nics]


def without(record: MachineRecord, network: str) -> MachineRecord:
    index = record.spec.networks.index(network)
    spec = msgspec.structs.replace(record.spec, networks=tuple(each for each in record.spec.networks if each != network))
    return msgspec.structs.replace(record, spec=spec, nics=[nic for place, nic in enumerate(record.nics) if place != index])


def also_on(context: Context, record: MachineRecord, network: str) -> MachineRecord:
    spec = msgspec.structs.replace(record.spec, networks=(*record.spec.networks, network))
    return with_cards(context, msgspec.structs.replace(record, spec=spec))


def test_a_machine_has_a_card_on_each_of_its_networks(context: Context) -> None:
    made = with_cards(context, machine("nat", "lab"))
    assert [name for name, _ in where(context, made)] == ["nat", "lab"]
    assert made.identity.macs == tuple(nic.mac for nic in made.nics)
    assert [nic.slot for nic in made.nics] == [0, 1]
    assert len({nic.key for nic in made.nics}) == 2
    assert with_cards(context, made) == made
    assert with_cards(context, machine()).nics == []
    with pytest.raises(NotFound, match="no network named 'labb'"):
        with_cards(context, machine("labb"))


def test_the_first_free_place_is_taken(context: Context) -> None:
    made = with_cards(context, machine("nat", "lab"))
    assert free_slot(made.nics) == 2
    assert free_slot(without(made, "nat").nics) == 0


@pytest.mark.parametrize(
    "meanwhile",
    [
        lambda context, record: record,
        lambda context, record: also_on(context, without(record, "lab"), "cell"),
        lambda context, record: also_on(context, without(record, "nat"), "nat"),
        lambda context, record: without(without(record, "nat"), "lab"),
        lambda context, record: also_on(context, record, "cell"),
    ],
    ids=["unchanged", "another network", "left and came back", "none left", "one more"],
)
def test_a_restored_guest_finds_its_cards_where_they_were(context: Context, meanwhile: object) -> None:
    was = with_cards(context, machine("nat", "lab"))
    assert callable(meanwhile)
    now: MachineRecord = meanwhile(context, was)
    back = with_restored_cards(context, msgspec.structs.replace(now, spec=was.spec), state_of(was))
    assert where(context, back) == where(context, was)
    assert [nic.slot for nic in back.nics] == [nic.slot for nic in was.nics]
    assert not {nic.key for nic in back.nics} & {nic.key for nic in now.nics}, "they hang beside those of the guest that runs"
    assert not are_elsewhere(back, state_of(was))


def test_a_state_of_another_machine_gets_hardware_addresses_of_its_own(context: Context) -> None:
    theirs = with_cards(context, machine("nat", "lab"))
    ours = machine("nat", "lab")
    taken_in = with_restored_cards(context, ours, state_of(theirs))
    assert [name for name, _ in where(context, taken_in)] == ["nat", "lab"]
    assert not set(taken_in.identity.macs) & set(theirs.identity.macs)


def test_a_fork_is_limited_as_the_machine_it_was(context: Context) -> None:
    parent = with_cards(context, machine("nat"))
    nics = [msgspec.structs.replace(parent.nics[0], rates=Rates(up=8000), up=False)]
    state = msgspec.structs.replace(state_of(parent), nics=nics)
    child = like_before(with_cards(context, machine("nat")), state)
    assert (child.nics[0].rates, child.nics[0].up) == (Rates(up=8000), False)
    assert child.nics[0].mac != nics[0].mac


def test_a_card_is_held_to_its_machines_limits_beside_its_own(context: Context) -> None:
    record = with_cards(context, machine("nat"))
    nic = msgspec.structs.replace(record.nics[0], rates=Rates(up=8000))
    assert narrowed(record, nic) is nic
    limited = msgspec.structs.replace(record, limits=Limits(net=Rates(up=9000, down=10_000)))
    assert narrowed(limited, nic).rates == Rates(up=8000, down=10_000)


def test_nobody_is_left_without_a_firewall_he_asked_for(context: Context) -> None:
    nic: Nic = with_cards(context, machine("nat")).nics[0]
    check_holds(context, nic, Firewall())
    with pytest.raises(HostLacks) as refused:  # behind a passt
        check_holds(context, nic, Firewall(profile="none"))
    assert refused.value.code == "no_firewall"
    with pytest.raises(HostLacks):
        check_holds(context, msgspec.structs.replace(nic, rates=Rates(down=8000)), Firewall())
