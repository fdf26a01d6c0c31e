"""The fabric as it is used: machines come and go, as root and as an ordinary user, and whatever is killed heals."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from insula.model.network import parse_rule
from insula.networks import naming
from insula.networks.peers import rule_counter
from tests.functional.networks import tags
from tests.functional.networks.lab import Failed
from tests.functional.networks.node import PATIENCE
from tests.functional.networks.world import HOST4, OTHER4, World, world

pytestmark = pytest.mark.root


@pytest.fixture(params=["root", "user"])
def town(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """Machines ``a`` and ``b`` on one network of a host; somebody else on its LAN."""
    with world(tmp_path, ordinary=request.param == "user") as made:
        made.host.attach("a", 10)
        made.host.attach("b", 11)
        yield made
        for name in ("a", "b"):
            made.host.end(name)
        assert made.host.remains() == []


def _until(true: Callable[[], bool]) -> None:
    """A server that was just told something, or started, needs a moment."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end


def _kept(found: dict[str, str], lease: dict[str, str]) -> bool:
    found.update(lease)
    return "address" in lease


def _all_works(town: World) -> None:
    a = town.machine("a")
    _until(lambda: a.lookup("10.77.0.1", "b.insula", patience=1.0) == ["10.77.0.11"])
    assert a.lease("52:54:00:1a:00:0a")["address"] == "10.77.0.10"
    assert a.ping("10.77.0.1")
    assert a.ping("10.77.0.11")
    _until(lambda: a.connect(OTHER4, 80, 1.0) == "open")  # pasta may be starting


@pytest.mark.limit(30)
def test_machines_have_addresses_names_and_a_way_out(town: World) -> None:
    town.other.serve(80)
    town.host.serve(8099)
    _all_works(town)
    assert town.machine("a").connect(OTHER4, 80, flow="seen") == "open"
    assert town.machine("a").say("seen")
    assert town.other.got(80)[-1:] == [[HOST4, "tcp"]]  # who asks is the host, as far as the LAN can see
    assert town.machine("a").connect(HOST4, 8099, 2.0) != "open"
    assert town.machine("a").await_address("fd12:3456:789a:1:").startswith("fd12:3456:789a:1:")
    assert town.host.status()["missing"] == []


@pytest.mark.limit(60)
@pytest.mark.parametrize(
    ("town", "killed"),
    [
        ("root", ["dnsmasq"]),
        ("root", ["holder"]),
        ("root", ["inside"]),
        ("root", ["holder", "inside"]),
        ("root", ["rules"]),
        ("user", ["pasta"]),
        ("user", ["holder"]),
        ("user", ["holder", "inside"]),
    ],
    indirect=["town"],
)
def test_what_was_killed_heals(town: World, killed: list[str]) -> None:
    town.other.serve(80)
    town.host.publish("a", 8080, 70)
    town.machine("a").serve(70)
    if killed == ["rules"]:
        town.host.mess_up()
    else:
        town.host.kill(*killed)
    lost = town.host.repair()
    if "inside" in killed and "holder" in killed:
        # Nothing is left that could lead there: the machines must be given new cards.
        assert lost == ["0000000a", "0000000b"]
        for name, number in (("a", 10), ("b", 11)):
            town.host.end(name)
            town.host.attach(name, number)
        town.machine("a").serve(70)
        town.host.publish("a", 8080, 70)
    else:
        assert lost == []
    _all_works(town)
    assert town.host.connect("127.0.0.1", 8080, flow="published") == "open"
    assert town.host.say("published")


@pytest.mark.limit(30)
def test_the_next_attach_heals_what_was_killed(town: World) -> None:
    town.other.serve(80)
    programs = town.host.programs()
    town.host.kill(*(["pasta", "dnsmasq"] if "pasta" in programs else ["dnsmasq"]))
    town.host.attach("c", 12)
    _all_works(town)
    assert town.machine("c").lease("52:54:00:1a:00:0c")["address"] == "10.77.0.12"
    town.host.end("c")


@pytest.mark.limit(30)
def test_ports_lead_to_machines(town: World) -> None:
    a = town.machine("a")
    a.serve(70)
    a.serve(71, "udp")
    town.host.publish("a", 8080, 70)
    town.host.publish("a", 8081, 71, "127.0.0.1", "udp")
    assert town.host.connect("127.0.0.1", 8080, flow="one") == "open"
    assert town.host.say("one")
    assert town.host.ask("127.0.0.1", 8081)
    assert town.other.connect(HOST4, 8080, 2.0) != "open"  # only the host's own programs unless another address was named
    town.host.publish("a", 8082, 70, HOST4)
    assert town.other.connect(HOST4, 8082, flow="far") == "open"
    assert town.other.say("far")
    with pytest.raises(Failed, match=r"port_taken: .* the machine 'a'"):
        town.host.publish("b", 8080, 70)
    town.host.serve(8090)
    with pytest.raises(Failed, match=r"port_taken: .*process \d+ \(python"):
        town.host.publish("b", 8090, 70)
    with pytest.raises(Failed, match="no_such_address"):
        town.host.publish("b", 8091, 70, "198.51.100.77")
    assert town.host.published() == ["8080 a", "8081 a", "8082 a"]
    assert town.host.unpublish(8080, 70)
    assert not town.host.unpublish(8080, 70)
    assert town.host.connect("127.0.0.1", 8080) == "Connection refused"


@pytest.mark.limit(30)
def test_a_card_changes_while_it_is_used(town: World) -> None:
    town.other.serve(80)
    a = town.machine("a")
    assert a.connect(OTHER4, 80, flow="long") == "open"
    assert a.say("long")
    town.host.change("a", rules=[f"deny to {OTHER4}"])
    assert not a.say("long", 2.0)
    assert a.connect(OTHER4, 80, 2.0) != "open"
    assert town.host.status()["cards"]["0000000a"]["counters"][rule_counter(parse_rule(f"deny to {OTHER4}"))][0] > 0
    town.host.change("a", up=False)
    assert not a.ping("10.77.0.1", 1.0)
    town.host.change("a", called="anew")
    assert a.ping("10.77.0.1")
    _until(lambda: town.machine("b").lookup("10.77.0.1", "anew.insula", patience=1.0) == ["10.77.0.10"])
    _until(lambda: town.machine("b").lookup("10.77.0.1", "a.insula", patience=1.0) == ["(rcode 3)"])


@pytest.mark.limit(30)
def test_who_has_a_former_ones_address_is_reached_at_once(town: World) -> None:
    """Nobody asks anew where an address is while they believe to know it; and the one that has it now says nothing."""
    addresses, former = ("10.77.0.10", "fd12:3456:789a:1:5054:ff:fe1a:a"), "52:54:00:1a:00:0a"
    town.host.end("a")
    for address in addresses:
        for who in ("", "b"):
            town.host.remember(address, former, who)
            assert town.host.remembered(address, who) == former
    mac = town.host.attach_heir("heir", 12, 10)
    for address in addresses:
        assert town.host.remembered(address) == mac
        _until(lambda address=address: town.host.remembered(address, "b") == mac)  # type: ignore[misc]  # mypy cannot tell the type of a default
    town.host.configure("heir", addresses[0])
    assert town.machine("b").ping(addresses[0])
    town.host.end("heir")
    town.host.attach("a", 10)


@pytest.mark.limit(30)
def test_nobody_is_told_of_its_own_address_or_of_one_it_may_not_speak_with(town: World) -> None:
    """A guest that tries whether its address is free would believe that somebody has it. (A card says where it is when its cable
    is plugged in, too.)"""
    gateway = naming.bridge_mac("1a000001").replace(":", "")
    town.host.attach("c", 12)
    town.host.isolate("c")
    told = {}
    for name in "abc":
        town.machine(name).sniff("all")
    for up in (False, True):
        town.host.change("a", up=up)
    for name, number in zip("abc", ("0a", "0b", "0c"), strict=True):
        assert town.machine(name).ping("10.77.0.1")
        heard = town.machine(name).heard("all", f"5254001a00{number}{gateway}0800")
        told[name] = any(frame[12:24] == "5254001a000a" for frame in heard)
    assert told == {"a": False, "b": True, "c": False}
    town.host.end("c")


@pytest.mark.limit(30)
def test_traffic_is_counted_and_can_be_looked_at(town: World) -> None:
    assert len(town.host.sniff_card("a")) >= 2
    card = town.host.status()["cards"]["0000000a"]
    assert card["present"]
    assert card["sent_packets"] > 0
    assert card["received_bytes"] > 0


@pytest.mark.limit(60)
def test_machines_that_keep_an_address_live_side_by_side(town: World) -> None:
    """Two that know nothing but their former address, which is the same: others see each by its own."""
    town.other.serve(80)
    for name, number in (("x", 20), ("y", 21)):
        town.host.attach_kept(name, number)
        town.machine(name).serve(70)
    town.host.publish("x", 8080, 70)
    for healed in (False, True):
        if healed:
            town.host.kill("holder")
            assert town.host.repair() == []
        _until(lambda: town.machine("a").lookup("10.77.0.1", "y.insula", patience=1.0) == ["10.77.0.21"])
        for name, address in (("x", "10.77.0.20"), ("y", "10.77.0.21")):
            assert town.machine(name).ping("10.77.0.1")
            _until(lambda name=name: town.machine(name).connect(OTHER4, 80, 1.0) == "open")  # type: ignore[misc]  # mypy cannot tell the type of a default
            assert town.machine("a").connect(address, 70, flow=f"to {address}") == "open"
            assert town.machine("a").say(f"to {address}")
        assert town.machine("x").connect("10.77.0.21", 70) == "open"
        assert town.host.connect("127.0.0.1", 8080, flow="published") == "open"
        assert town.host.say("published")
    town.host.end("x")
    town.host.end("y")


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[World]:
    """A host with a DHCP server on its LAN. Only root can put machines there."""
    with world(tmp_path, ordinary=False) as made:
        made.serve_lan(tmp_path)
        yield made
        assert made.host.remains() == []


@pytest.mark.limit(30)
@pytest.mark.parametrize("way", ["bridge", "card"])
def test_machines_on_the_lan(lan: World, way: str) -> None:
    """Through a bridge of the host, or beside its card: there a machine reaches everybody but its own host."""
    network = "3c000003" if way == "bridge" else "4d000004"
    if way == "bridge":
        lan.make_bridge()
    lan.host.attach("a", 10, network)
    lan.host.attach("b", 11, network)
    a = lan.machine("a")
    found: dict[str, str] = {}
    _until(lambda: _kept(found, a.lease("52:54:00:1a:00:0a", patience=1.0)))
    assert found["address"].startswith("203.0.113.5")
    lan.host.configure("a", found["address"])
    lan.host.configure("b", "203.0.113.70")
    assert a.ping(OTHER4)
    assert lan.other.ping(found["address"])
    assert a.ping("203.0.113.70")
    assert a.ping(HOST4, 2.0) == (way == "bridge")
    assert lan.host.status()["cards"]["0000000a"]["sent_packets"] > 0
    lan.host.end("a")
    assert lan.machine("b").ping(OTHER4)
    lan.host.end("b")


@pytest.mark.limit(30)
def test_what_a_lan_asks_for(tmp_path: Path) -> None:
    with world(tmp_path, ordinary=True) as made:
        made.make_bridge()
        with pytest.raises(Failed, match="needs_root"):
            made.host.attach("a", 10, "3c000003")
        assert made.host.remains() == []
    (tmp_path / "root").mkdir()
    with world(tmp_path / "root", ordinary=False) as made:
        with pytest.raises(Failed, match="parent_missing: this host has no link 'lanbr'"):
            made.host.attach("a", 10, "3c000003")
        assert made.host.remains() == []


@pytest.mark.limit(30)
@pytest.mark.parametrize(("user", "server"), [("root", "127.0.0.1"), ("root", HOST4), ("user", "127.0.0.1")])
def test_a_name_server_of_the_host_itself_is_asked_for_machines(tmp_path: Path, user: str, server: str) -> None:
    """They reach no service of the host, and their network's name server asks it all the same."""
    (tmp_path / "resolv.conf").write_text(f"nameserver {server}\n")
    with world(tmp_path, ordinary=user == "user") as made:
        made.serve_names(server, "--address=/there.example/192.0.2.7")
        made.host.attach("a", 10)
        a = made.machine("a")
        _until(lambda: a.lookup("10.77.0.1", "there.example", patience=1.0) == ["192.0.2.7"])
        assert a.lookup(server, "there.example", patience=0.5) != ["192.0.2.7"]
        assert made.host.status()["missing"] == []
        made.host.end("a")
        assert made.host.remains() == []


@pytest.mark.limit(30)
def test_a_host_without_a_way_out_has_networks_all_the_same(tmp_path: Path) -> None:
    """Nothing is missing then, and when there is a way the next machine brings it to all."""
    with world(tmp_path, ordinary=True) as made:
        made.root("ip", "route", "delete", "default")
        made.host.attach("a", 10)
        made.host.attach("b", 11)
        assert made.machine("a").ping("10.77.0.11")
        _until(lambda: "pasta" not in made.host.programs())
        assert made.host.status()["missing"] == []
        assert made.host.repair() == []
        made.root("ip", "route", "add", "default", "via", OTHER4)
        assert made.host.status()["missing"] == ["pasta"]
        made.host.attach("c", 12)
        made.other.serve(80)
        _until(lambda: made.machine("a").connect(OTHER4, 80, 1.0) == "open")
        for name in ("a", "b", "c"):
            made.host.end(name)
        assert made.host.remains() == []


@pytest.mark.limit(30)
def test_a_subnet_that_others_have_by_now_is_not_taken_from_them(lan: World) -> None:
    """Another home's, or a VPN's that came after the network was made; a wider one does not matter."""
    for theirs in ("10.77.0.0/24", "10.77.0.128/25"):
        lan.root("ip", "route", "add", theirs, "via", OTHER4)
        with pytest.raises(Failed, match=f"subnet_taken: this host sends {theirs} elsewhere"):
            lan.host.attach("a", 10)
        lan.root("ip", "route", "delete", theirs, "via", OTHER4)
        assert lan.host.remains() == []
    lan.root("ip", "route", "add", "10.0.0.0/8", "via", OTHER4)
    lan.host.attach("a", 10)
    lan.other.serve(80)
    assert lan.machine("a").connect(OTHER4, 80) == "open"
    lan.host.end("a")
    lan.root("ip", "route", "delete", "10.0.0.0/8", "via", OTHER4)


@pytest.mark.limit(30)
def test_a_subnet_that_others_have_by_now_stands_in_no_other_networks_way(lan: World) -> None:
    """Theirs came while a machine was on the network: it keeps what it has, others come, and a repair leaves theirs alone."""
    theirs = "10.77.0.128/25"
    lan.other.serve(80)
    lan.host.attach("a", 10)
    lan.root("ip", "route", "add", theirs, "via", OTHER4)
    lan.host.attach("c", 12, "70000007")
    assert lan.machine("c").connect(OTHER4, 80) == "open"
    assert lan.host.repair() == []
    assert lan.machine("a").ping("10.77.0.1")
    lan.host.end("a")
    with pytest.raises(Failed, match="subnet_taken"):
        lan.host.attach("a", 10)
    assert lan.machine("c").connect(OTHER4, 80) == "open"
    lan.host.end("c")
    lan.root("ip", "route", "delete", theirs, "via", OTHER4)
    assert lan.host.remains() == []


@pytest.mark.limit(30)
def test_the_hosts_switches_are_afterwards_as_they_were(lan: World) -> None:
    """Those of single links too, which the kernel turns along with the one for all."""
    for switch, value in (("ipv4/conf/eth0/forwarding", 1), ("ipv6/conf/eth0/forwarding", 1), ("ipv4/conf/lo/forwarding", 0)):
        lan.root("sh", "-c", f"echo {value} > /proc/sys/net/{switch}")
    before = lan.switches()
    assert before["ipv4/conf/eth0/forwarding"] == "1"
    assert before["ipv4/ip_forward"] == before["ipv6/conf/all/forwarding"] == before["ipv4/conf/lo/forwarding"] == "0"
    lan.host.attach("a", 10)
    during = lan.switches()
    assert during["ipv4/ip_forward"] == during["ipv6/conf/all/forwarding"] == during["ipv4/conf/lo/forwarding"] == "1"
    lan.host.end("a")
    assert lan.switches() == before


@pytest.mark.limit(30)
@pytest.mark.parametrize("chain", ["policy drop;", "\nct state established accept\nreject with icmpx admin-prohibited\n"])
def test_a_filter_of_others_that_drops_is_named_with_what_lets_us_through(lan: World, chain: str) -> None:
    """Machines are heard by their host all the same; nothing of others' is changed by us."""
    lan.host.attach("a", 10)
    a = lan.machine("a")
    lan.other.serve(80)
    assert a.connect(OTHER4, 80) == "open"
    assert lan.host.blocked() == []
    lan.root("nft", f"add table inet theirs {{ chain passing {{ type filter hook forward priority 0; {chain} }}\n }}")
    assert a.connect(OTHER4, 80, 1.0) != "open"
    assert a.ping("10.77.0.1")
    ((words, fix),) = lan.host.blocked()
    assert words == "the chain 'passing' of the table 'inet theirs' drops what this host forwards by IPv4 and IPv6"
    lan.root("sh", "-c", fix)
    assert a.connect(OTHER4, 80) == "open"
    assert lan.host.blocked() == []
    lan.root("nft", "delete table inet theirs")
    lan.host.end("a")


def _makes_vlans() -> bool:
    made = "ip link add p0 type veth peer name p1 && ip link add link p0 name q0 type vlan id 7"
    return subprocess.run(["unshare", "--net", "sh", "-c", made], capture_output=True, check=False).returncode == 0


@pytest.mark.limit(30)
@pytest.mark.parametrize("way", tags.WAYS)
def test_machines_on_a_vlan_of_the_lan(lan: World, way: str) -> None:
    """Where the kernel cannot, it is told so; there `tests/functional/test_tags.py` tries it in a guest."""
    if _makes_vlans():
        tags.check(lan, way)
        return
    if way != "card":
        lan.make_bridge()
    with pytest.raises(Failed, match="no_vlan: this host's kernel makes no VLANs"):
        lan.host.attach("a", 10, tags.WAYS[way])


@pytest.mark.limit(60)
@pytest.mark.parametrize("town", ["root", pytest.param("user", marks=pytest.mark.full)], indirect=True)
def test_rates_hold_each_way_and_change(town: World) -> None:
    town.other.serve(80)
    free = town.host.speed("a", OTHER4)
    town.host.change("a", send=2_000_000)
    slow = town.host.speed("a", OTHER4)
    town.host.change("a", send=0)
    again = town.host.speed("a", OTHER4)
    # What is echoed comes back as fast as it went.
    assert slow < 3_000_000 < free
    assert again > 3_000_000
    town.host.change("a", receive=2_000_000)
    assert town.host.speed("a", OTHER4) < 3_000_000


@pytest.mark.limit(60)
def test_many_come_at_once(town: World) -> None:
    """From none at all, too: whoever is first makes what all need."""
    for name in ("a", "b"):
        town.host.end(name)
    town.host.race(8)
    assert town.host.remains() == []
    for name, number in (("a", 10), ("b", 11)):
        town.host.attach(name, number)


def test_a_host_without_tun_is_told_so(tmp_path: Path) -> None:
    with world(tmp_path, ordinary=True, tun="600") as made:
        with pytest.raises(Failed, match="no_tun: /dev/net/tun: Permission denied"):
            made.host.attach("a", 10)
        assert made.host.remains() == []
