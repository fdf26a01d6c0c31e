"""Hosts on which networks have it hard: several homes and users, a reboot, a card that vanishes, too little of what networks are
made of. The machines are real,
the host is one of their own (tests/framework/island.py)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.framework.island import Island, User, island
from tests.framework.project import ROOT

pytestmark = [pytest.mark.full, pytest.mark.root, pytest.mark.limit(600)]

_MACHINE = ("--memory", "128M")


@pytest.fixture
def there(home: Path, tiny: str, tmp_path: Path) -> Iterator[Island]:
    with island(tmp_path, home / "images") as made:
        before = made.seen()
        yield made
        assert made.seen() == before


def _run(user: User, name: str, *words: str) -> str:
    """A new machine's address."""
    user.insula("run", "-q", "--name", name, *_MACHINE, *words, "tiny")
    return _address(user, name)


def _address(user: User, name: str) -> str:
    address: str = user.told("show", name)[0]["nics"][0]["ipv4"]
    return address


def _delete(user: User, *names: str, left: Sequence[str] = ()) -> None:
    user.insula("delete", "--force", *names)
    assert [machine["name"] for machine in user.told("list")] == list(left)


def test_homes_and_users_are_not_in_each_others_way(there: Island) -> None:
    """Two homes of root's and two users, each with machines of the same names on a network of the same name."""
    users = [there.user("one", 0), there.user("two", 0), there.user("anna", 65534), there.user("bob", 65533)]
    for user in users:
        _run(user, "web", "-p", f"{8000 + users.index(user)}:80")
        _run(user, "db")
    for user in users:
        user.insula("exec", "db", "--", "ping", "-c1", "-W20", "web.insula")
    one, two = (user.told("network", "show", "nat")["ipv4"] for user in users[:2])
    assert one != two
    for user in users:
        told = user.refused("run", *_MACHINE, "--name", "third", "-p", f"{8000 + (user is users[0])}:80", "tiny")
        assert "is taken by " in told
        assert "insula-keeper" in told or user.uid  # a user is not shown who of others has it
        assert [machine["name"] for machine in user.told("list")] == ["db", "web"]
    _delete(users[0], "web", "db")  # the others' live on
    for user in users[1:]:
        user.insula("exec", "db", "--", "ping", "-c1", "-W20", "web.insula")
        _delete(user, "web", "db")


@pytest.mark.parametrize("uid", [0, 65534])
def test_a_host_that_was_rebooted_has_its_networks_again(there: Island, uid: int) -> None:
    user = there.user("owner", uid)
    addresses = [_run(user, "web", "-p", "8000:80"), _run(user, "db")]
    there.reboot()
    assert [machine["state"] for machine in user.told("list")] == ["stopped", "stopped"]
    user.insula("start", "db", "web")
    assert [_address(user, "web"), _address(user, "db")] == addresses
    user.insula("exec", "db", "--", "ping", "-c1", "-W20", "web.insula")
    assert [port["listening"] for port in user.told("ports")] == [True]
    _delete(user, "web", "db")


@pytest.mark.parametrize("uid", [0, 65534])
def test_memory_kept_before_a_reboot_goes_on_after_it(there: Island, uid: int) -> None:
    """A machine that was suspended, and one that goes back to a snapshot: memory, addresses, ports and neighbours are there."""
    user = there.user("owner", uid)
    addresses = [_run(user, "nap", "-p", "8000:80"), _run(user, "web", "-p", "8001:80")]
    for name in ("nap", "web"):
        user.insula("exec", name, "--", "sh", "-c", f"echo {name} > /run/memo")
    user.insula("suspend", "nap")
    user.insula("snapshot", "create", "web@one")
    there.reboot()
    assert [machine["state"] for machine in user.told("list")] == ["suspended", "stopped"]
    user.insula("start", "nap")
    user.insula("snapshot", "restore", "web@one")
    for name, other in (("nap", "web"), ("web", "nap")):
        user.insula("exec", name, "--", "sh", "-c", f"[ $(cat /run/memo) = {name} ] && ping -c1 -W20 {other}.insula")
    assert [_address(user, "nap"), _address(user, "web")] == addresses
    assert [port["listening"] for port in user.told("ports")] == [True, True]
    _delete(user, "nap", "web")


_LAN = {
    "bridge": ("link add lan0 type bridge stp_state 0 forward_delay 0", "address add 192.0.2.1/24 dev lan0"),
    "card": ("link add lan0 type veth peer name lan1", "link set lan1 up", "address add 192.0.2.1/24 dev lan1"),
}
# In a guest: the card with that hardware address, whatever it is called by now, is on the LAN.
_ON_LAN = """
for each in /sys/class/net/*; do
    [ "$(cat $each/address)" != "$1" ] || card=${each##*/}
done
ip address replace 192.0.2.2/24 dev $card && ip link set $card up && ping -c1 -W20 192.0.2.1
"""


def _plug_lan(there: Island, kind: str) -> None:
    for line in (*_LAN[kind], "link set lan0 up"):
        there.root("ip", *line.split())


@pytest.mark.parametrize("kind", _LAN)
def test_a_link_of_the_host_that_vanishes_and_comes_back(there: Island, kind: str) -> None:
    """Its machines go on and say what they lost, others notice nothing, and a repair finds it again."""
    user = there.user("owner", 0)
    _plug_lan(there, kind)
    user.insula("network", "create", "street", "--mode", "bridge", "--parent", "lan0")
    _run(user, "web", "--network", "nat", "--network", "street")
    _run(user, "db")
    mac = user.told("show", "web")[0]["nics"][1]["mac"]
    user.insula("exec", "web", "--", "sh", "-c", _ON_LAN, "sh", mac)
    assert [machine["problem"] for machine in user.told("list")] == [None, None]
    there.root("ip", "link", "delete", "lan0")
    assert "insula network repair" in user.told("show", "web")[0]["problem"]
    assert [machine["name"] for machine in user.told("list") if machine["problem"]] == ["web"]
    assert "this host has no link 'lan0'" in user.refused("run", *_MACHINE, "--name", "late", "--network", "street", "tiny")
    assert "street is on 'lan0', which this host does not have any more" in user.insula("network", "repair").stdout
    assert "which this host does not have any more" in user.told("network", "show", "street")["blocked"][0]
    user.insula("exec", "db", "--", "ping", "-c1", "-W20", "web.insula")
    user.insula("exec", "web", "--", "ping", "-c1", "-W20", "db.insula")
    _run(user, "late")
    _delete(user, "late", left=["db", "web"])
    _plug_lan(there, kind)
    user.insula("network", "repair")
    assert [machine["problem"] for machine in user.told("list")] == [None, None]
    user.insula("exec", "web", "--", "sh", "-c", _ON_LAN, "sh", mac)
    assert user.told("network", "show", "street")["blocked"] == []
    _delete(user, "web", "db")
    there.root("ip", "link", "delete", "lan0")


@pytest.mark.parametrize("uid", [0, 65534])
@pytest.mark.parametrize("lost", ["/usr/sbin/nft", "/dev/net"])
def test_without_what_networks_are_made_of_machines_run_alone(there: Island, uid: int, lost: str) -> None:
    """What does not go is said, with the next step; what works works. Later, all is there at once."""
    user = there.user("owner", uid)
    what = "not installed: nft" if lost.endswith("nft") else "/dev/net/tun is not there"
    with there.without(lost, "/usr/bin/apt-get"):  # which would see to it, and not on the island alone
        alone = _run(user, "alone")
        assert user.insula("exec", "alone", "--", "ip", "-4", "address").stdout.count(f" {alone}/") == 1
        for words in (("network", "create", "lab", "--mode", "private"), ("publish", "alone", "8080:80")):
            told = user.refused(*words)
            assert what in told
            assert "insula doctor" in told
        told = user.refused("run", *_MACHINE, "--name", "held", "--profile", "none", "tiny")
        assert "insula doctor" in told
        facts = {fact["name"]: fact for fact in json.loads(user.insula("doctor", "--json", check=False).stdout)["facts"]}
        assert facts["networks"]["state"] == "limited"
        assert what in facts["networks"]["detail"]
        assert facts["networks"]["fix"]
        assert [machine["name"] for machine in user.told("list")] == ["alone"]
        assert [one["name"] for one in user.told("network", "list")] == ["nat"]
    _run(user, "web")
    user.insula("network", "create", "lab", "--mode", "private")
    user.insula("exec", "alone", "--", "true")
    _delete(user, "alone", "web")


def test_where_no_user_namespaces_may_be_made_nothing_starts_and_why_is_said(there: Island) -> None:
    """The jail of every machine is made of one: none is started without."""
    user = there.user("anna", 65534)
    user.within = [sys.executable, str(ROOT / "tests" / "framework" / "without_namespaces.py")]
    told = user.refused("run", *_MACHINE, "--name", "web", "tiny")
    assert "this host lets nobody like us make user namespaces" in told
    assert "insula doctor" in told
    report = json.loads(user.insula("doctor", "--json", check=False).stdout)
    fact = next(fact for fact in report["facts"] if fact["name"] == "user namespaces")
    assert (report["usable"], fact["state"], fact["fix"]) == (False, "missing", "sudo sysctl -w user.max_user_namespaces=15000")
    assert [(machine["name"], machine["state"]) for machine in user.told("list")] == [("web", "stopped")]
    user.within = []
    user.insula("start", "web")
    _delete(user, "web")


def test_fifty_machines_of_an_ordinary_user_on_one_network(there: Island) -> None:
    user = there.user("anna", 65534)
    user.insula("network", "create", "crowd", "--mode", "private")
    _run(user, "crowd-0", "--network", "crowd")
    user.insula("fork", "-q", "-n", "49", "--name", "crowd-{n}", "crowd-0", timeout=500)
    machines = user.told("list")
    assert [machine["problem"] for machine in machines] == [None] * 50
    assert len({machine["addresses"][0] for machine in machines}) == 50
    for number in range(1, 50):
        user.insula("exec", f"crowd-{number}", "--", "ping", "-c1", "-W20", f"crowd-{number - 1}.insula")
    assert len(user.told("network", "show", "crowd")["members"]) == 50
    _delete(user, *(machine["name"] for machine in machines))
