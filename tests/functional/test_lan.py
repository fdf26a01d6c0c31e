"""Real machines on a LAN that has a DHCP server of its own: through a bridge of the host, and beside its card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import insula
from tests.framework.lan import SERVER, Lan, lan

pytestmark = [pytest.mark.root, pytest.mark.limit(180)]


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lan]:
    with lan(tmp_path_factory.mktemp("lan")) as made:
        yield made


@pytest.fixture(params=["bridge", "card"])
def network(request: pytest.FixtureRequest, home: Path, street: Lan) -> Iterator[str]:
    connection = insula.connect(home)
    name = f"street-{request.param}"
    connection.create_network(name, "bridge", parent=street.bridge if request.param == "bridge" else street.card)
    yield name
    connection.delete_network(name)


def has(machine: insula.Machine, address: str) -> bool:
    """Whether the guest has set its card to what it was given, as soon as it has."""
    wait = f"until ip -4 address | grep -q ' {address}/24 '; do sleep 0.1; done"
    return machine.exec("timeout", "40", "sh", "-c", wait).code == 0


def mac(machine: insula.Machine) -> str:
    return machine.show().nics[0].mac


def test_each_is_a_device_of_its_own_there(
    home: Path, tiny: str, network: str, name: str, street: Lan, forget: Callable[[str], None]
) -> None:
    """It asks the LAN's server, as does a fork, for an address of its own; after a restore it is where it was."""
    machine = insula.connect(home).run(tiny, name=name, memory="128M", network=network)
    machine.exec("sh", "-c", "mkdir /www; hostname > /www/index.html; httpd -p 80 -h /www", check=True)
    own = street.lease(mac(machine))
    assert has(machine, own)
    assert street.fetched(own).strip() == name
    assert machine.exec("ping", "-c1", "-W5", SERVER).code == 0
    snapshot = machine.snapshot("there")
    child = machine.fork(name=f"{name[:50]}-child")[0]
    forget(child.name)
    other = street.lease(mac(child))
    assert other != own
    assert has(child, other)
    assert own not in child.exec("ip", "-4", "address").stdout.replace("/", " ").split()
    child.exec("sh", "-c", "hostname > /www/index.html", check=True)
    assert street.fetched(other).strip() == child.name
    assert street.fetched(own).strip() == name
    child.delete(force=True)
    machine.exec("sh", "-c", "echo changed > /tmp/after", check=True)
    snapshot.restore(keep=False)
    assert machine.exec("test", "-e", "/tmp/after").code == 1
    assert has(machine, own)
    assert street.fetched(own).strip() == name
    assert machine.exec("ping", "-c1", "-W5", SERVER).code == 0
    machine.delete(force=True)


@pytest.mark.full
@pytest.mark.limit(600)
@pytest.mark.parametrize("network", ["bridge"], indirect=True)
def test_a_system_with_a_client_of_its_own_asks_anew_when_it_is_forked(
    home: Path, debian: str, network: str, name: str, street: Lan, forget: Callable[[str], None]
) -> None:
    machine = insula.connect(home).run(debian, name=name, network=network)
    own = street.lease(mac(machine))
    child = machine.fork(name=f"{name[:50]}-child")[0]
    forget(child.name)
    other = street.lease(mac(child))
    assert other != own
    assert has(child, other)
    assert own not in child.exec("ip", "-4", "address").stdout.replace("/", " ").split()


@pytest.mark.full
@pytest.mark.parametrize("network", ["bridge"], indirect=True)
def test_a_client_of_another_make_is_begun_anew_with_its_own_words(
    home: Path, tiny: str, network: str, name: str, forget: Callable[[str], None]
) -> None:
    """A fork's has no address of its parent's before it asks. (The client is a script of the name of one that is known.)"""
    machine = insula.connect(home).run(tiny, name=name, memory="128M", network=network)
    client = (
        'echo $(cat /sys/class/net/eth0/address) "$@" $(ip -4 address show dev eth0 | grep -c inet) >> /tmp/asked; sleep 9999'
    )
    begin = f"killall udhcpc; printf '%s\\n' '#!/bin/sh' '{client}' > /bin/dhclient; chmod +x /bin/dhclient; dhclient -v eth0 &"
    machine.exec("sh", "-c", begin, check=True)
    waits = "until [ $(wc -l < /tmp/asked) -ge $1 ]; do sleep 0.1; done; cat /tmp/asked"
    assert machine.exec("sh", "-c", waits, "sh", "1").stdout.split() == [mac(machine), "-v", "eth0", "1"]
    child = machine.fork(name=f"{name[:50]}-child")[0]
    forget(child.name)
    asked = child.exec("sh", "-c", waits, "sh", "2").stdout.splitlines()
    assert asked[1].split() == [mac(child), "-v", "eth0", "0"]
    assert len(asked) == 2
