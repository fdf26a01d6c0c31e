"""Networks on disk: no two subnets overlap, no two cards have one address, and nobody's address goes while it is there."""

from __future__ import annotations

import contextlib
import threading
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from insula.errors import AlreadyExists, DamagedRecord, HostLacks, InsulaError, NotFound, UsageError, WrongState
from insula.model.network import NetworkSpec
from insula.store import names
from insula.store.names import Home
from insula.store.networks import (
    claim_address,
    claims,
    create_network,
    default_network,
    delete_network,
    find_network,
    free_subnet,
    list_networks,
    network_by_id,
    network_names,
    read_network,
    release_claim,
    release_claims,
    sweep_claims,
)

MAC = "52:54:00:00:00:01"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def mac(number: int) -> str:
    return f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}"


def test_a_network_is_what_was_asked_for(home: Home) -> None:
    made = create_network(home, "lab", NetworkSpec("private", "10.9.0.0/24", "fd00:1::/64", isolated=True))
    assert find_network(home, "lab") == ("lab", made)
    assert made.spec == NetworkSpec("private", "10.9.0.0/24", "fd00:1::/64", isolated=True)
    assert network_by_id(home, made.id) == ("lab", made)
    assert list_networks(home) == [("lab", made)]


def test_the_default_network_is_made_once(home: Home) -> None:
    name, record = default_network(home)
    assert (name, record.spec.mode) == ("nat", "nat")
    assert IPv4Network(record.spec.ipv4 or "").subnet_of(IPv4Network("10.64.0.0/10"))
    prefix = IPv6Network(record.spec.ipv6 or "")
    assert prefix.prefixlen == 64
    assert prefix.subnet_of(IPv6Network("fd00::/8"))
    assert default_network(home) == (name, record)


def test_free_subnets_touch_nothing_that_is_there(home: Home) -> None:
    taken = ["0.0.0.0/0", "10.77.0.0/23", "10.77.2.128/25", "fd00::/8"]
    assert free_subnet(taken) == "10.77.3.0/24"
    assert free_subnet([]) == "10.77.0.0/24"
    with pytest.raises(HostLacks, match="no subnet is free"):
        free_subnet(["10.0.0.0/8", "172.16.0.0/12"])
    assert free_subnet(["10.0.0.0/8", "172.24.0.0/24"]) == "172.24.1.0/24"
    first = IPv4Network(create_network(home, "a", NetworkSpec("nat")).spec.ipv4 or "")
    following = str(IPv4Network((int(first.network_address) + 256, 24)))
    assert create_network(home, "b", NetworkSpec("private"), [following]).spec.ipv4 not in (str(first), following)


def test_homes_look_for_subnets_in_different_places(tmp_path: Path) -> None:
    """What another home has is not seen while it has no machines that run."""
    chosen = [create_network(Home(tmp_path / str(each)), "lab", NetworkSpec("nat")).spec.ipv4 for each in range(4)]
    assert len(set(chosen)) > 1  # of 13056, by the folders' names
    assert free_subnet([], begin=51 * 256 - 1) == "10.127.255.0/24"
    assert free_subnet(["10.127.255.0/24"], begin=51 * 256 - 1) == "10.77.0.0/24"


@pytest.mark.parametrize(
    ("spec", "taken", "whose"),
    [
        (NetworkSpec("nat", "10.9.0.0/16"), [], "10.9.1.0/24, the network 'lab'"),
        (NetworkSpec("nat", "10.9.1.128/25"), [], "10.9.1.0/24, the network 'lab'"),
        (NetworkSpec("nat", "10.8.0.0/24", "fd00:1::/64"), [], "fd00:1::/64, the network 'lab'"),
        (NetworkSpec("nat", "192.168.1.0/24"), ["192.168.0.0/16"], "192.168.0.0/16, a route of this computer"),
    ],
)
def test_overlapping_subnets_are_refused(home: Home, spec: NetworkSpec, taken: list[str], whose: str) -> None:
    create_network(home, "lab", NetworkSpec("private", "10.9.1.0/24", "fd00:1::/64"))
    with pytest.raises(UsageError, match="overlaps with") as refused:
        create_network(home, "other", spec, ["0.0.0.0/0", "::/0", *taken])
    assert refused.value.code == "subnet_taken"
    assert refused.value.message.endswith(whose)
    assert network_names(home) == ["lab"]
    assert [path.name for path in home.networks.iterdir()] == ["lab"]


def test_a_name_is_had_once(home: Home) -> None:
    create_network(home, "lab", NetworkSpec("private"))
    with pytest.raises(AlreadyExists, match="'lab'"):
        create_network(home, "lab", NetworkSpec("nat"))
    with pytest.raises(UsageError):
        create_network(home, "../lab", NetworkSpec("nat"))


def test_who_is_not_there_is_not_found(home: Home) -> None:
    create_network(home, "laboratory", NetworkSpec("private"))
    with pytest.raises(NotFound) as missing:
        find_network(home, "labratory")
    assert missing.value.hint == "did you mean laboratory?"
    for name in ("..", "../machines", "", "lab\0"):
        with pytest.raises(NotFound):
            find_network(home, name)
    with pytest.raises(NotFound):
        claim_address(home, "nowhere", "m", "00000001", MAC)
    with pytest.raises(NotFound):
        network_by_id(home, "00000000")


def test_damage_hurts_one_network_only(home: Home) -> None:
    create_network(home, "good", NetworkSpec("private"))
    create_network(home, "bad", NetworkSpec("private"))
    (home.network("bad") / names.NETWORK_RECORD).write_text('{"version": 1}')
    with pytest.raises(DamagedRecord):
        read_network(home, "bad")
    (home.network("bad") / names.NETWORK_RECORD).unlink()
    with pytest.raises(DamagedRecord):
        read_network(home, "bad")
    assert [name for name, _ in list_networks(home)] == ["good"]
    delete_network(home, "bad")
    assert network_names(home) == ["good"]


def test_a_newer_record_is_left_alone(home: Home) -> None:
    create_network(home, "lab", NetworkSpec("private"))
    path = home.network("lab") / names.NETWORK_RECORD
    path.write_text(path.read_text().replace('"version": 1', '"version": 9'))
    with pytest.raises(DamagedRecord, match="newer Insula"):
        read_network(home, "lab")


def test_an_address_stays_who_it_was_given_to(home: Home) -> None:
    create_network(home, "lab", NetworkSpec("nat", "10.9.0.0/24", "fd00:1::/64"))
    claim = claim_address(home, "lab", "machine", "00000001", MAC)
    assert claim.ipv4 == "10.9.0.3"
    assert claim.ipv6 == "fd00:1::5054:ff:fe00:1"
    assert claim_address(home, "lab", "machine", "00000001", MAC) == claim
    other = claim_address(home, "lab", "other", "00000002", mac(2))
    assert claims(home, "lab") == [claim, other]
    release_claims(home, "machine")
    assert claims(home, "lab") == [other]
    release_claim(home, "lab", "00000002")
    release_claim(home, "lab", "00000002")
    release_claim(home, "gone", "00000002")
    assert claims(home, "lab") == []


def test_a_wanted_address_replaces_the_one_there_was(home: Home) -> None:
    create_network(home, "lab", NetworkSpec("nat", "10.9.0.0/24"))
    claim_address(home, "lab", "machine", "00000001", MAC)
    wanted = claim_address(home, "lab", "machine", "00000001", MAC, "10.9.0.200")
    assert [each.ipv4 for each in claims(home, "lab")] == ["10.9.0.200"]
    assert claim_address(home, "lab", "machine", "00000001", MAC) == wanted
    with pytest.raises(AlreadyExists) as taken:
        claim_address(home, "lab", "other", "00000002", mac(2), "10.9.0.200")
    assert taken.value.code == "address_taken"
    with pytest.raises(AlreadyExists) as twice:
        claim_address(home, "lab", "other", "00000002", MAC)
    assert twice.value.code == "mac_taken"
    assert claims(home, "lab") == [wanted]
    assert len(list((home.network("lab") / names.ADDRESSES).iterdir())) == 1


@pytest.mark.parametrize("wanted", ["10.9.0.0", "10.9.0.1", "10.9.0.255", "10.8.0.7", "fd00::1", "web", "10.9.0.07", "../x"])
def test_addresses_nobody_can_have(home: Home, wanted: str) -> None:
    create_network(home, "lab", NetworkSpec("nat", "10.9.0.0/24"))
    with pytest.raises(UsageError) as refused:
        claim_address(home, "lab", "machine", "00000001", MAC, wanted)
    assert refused.value.code == "bad_address"
    assert claims(home, "lab") == []


def test_a_subnet_has_an_end(home: Home) -> None:
    create_network(home, "tight", NetworkSpec("private", "10.9.0.0/29"))
    given = {claim_address(home, "tight", f"m{number}", f"{number:08x}", mac(number)).ipv4 for number in range(5)}
    assert given == {str(each) for each in list(IPv4Network("10.9.0.0/29"))[2:-1]}
    with pytest.raises(HostLacks, match="all 5 addresses of 'tight'") as full:
        claim_address(home, "tight", "m5", "00000005", mac(5))
    assert full.value.code == "subnet_full"
    release_claims(home, "m3")
    assert claim_address(home, "tight", "m5", "00000005", mac(5)).ipv4 == "10.9.0.5"


def test_the_lans_addresses_are_not_ours_to_give(home: Home) -> None:
    create_network(home, "lan", NetworkSpec("bridge", parent="br0"))
    claim = claim_address(home, "lan", "machine", "00000001", MAC)
    assert (claim.ipv4, claim.ipv6) == ("", "")
    assert claims(home, "lan") == [claim]
    with pytest.raises(UsageError, match="bridged"):
        claim_address(home, "lan", "machine", "00000001", MAC, "10.0.0.9")


def test_a_network_in_use_is_not_deleted(home: Home) -> None:
    create_network(home, "lab", NetworkSpec("private"))
    claim_address(home, "lab", "machine", "00000001", MAC)
    with pytest.raises(WrongState) as used:
        delete_network(home, "lab")
    assert used.value.code == "network_in_use"
    assert "a machine has a card on 'lab'" in used.value.message
    release_claims(home, "machine")
    delete_network(home, "lab")
    assert list(home.networks.iterdir()) == []


def test_what_the_dead_left_is_swept(home: Home) -> None:
    create_network(home, "lab", NetworkSpec("private"))
    claim_address(home, "lab", "alive", "00000001", MAC)
    dead = claim_address(home, "lab", "dead", "00000002", mac(2))
    (home.networks / f"{names.NEW_PREFIX}ab" / "addresses").mkdir(parents=True)
    (home.networks / f"{names.GONE_PREFIX}cd").mkdir()
    left = home.network("lab") / names.ADDRESSES / ".00000003.0123abcd"
    left.write_text("{")
    assert sweep_claims(home, lambda machine: machine == "alive") == [dead]
    assert [claim.machine for claim in claims(home, "lab")] == ["alive"]
    assert not left.exists()
    create_network(home, "next", NetworkSpec("private"))
    assert sorted(path.name for path in home.networks.iterdir()) == ["lab", "next"]


def test_side_by_side_nobody_gets_the_same(home: Home) -> None:
    """Many makers of one network, then many cards with the same place to begin to look for an address."""
    made: list[str] = []

    def work(number: int) -> None:
        with contextlib.suppress(AlreadyExists):
            made.append(create_network(home, "lab", NetworkSpec("nat", "10.9.0.0/24")).id)
        claim_address(home, "lab", f"m{number}", f"{number * 253:08x}", mac(number))

    failures: list[InsulaError] = []

    def caught(number: int) -> None:
        try:
            work(number)
        except InsulaError as failure:
            failures.append(failure)

    workers = [threading.Thread(target=caught, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []
    assert len(made) == 1
    assert len({claim.ipv4 for claim in claims(home, "lab")}) == 8
