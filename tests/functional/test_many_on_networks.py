"""Many machines on networks at once: each has what is its own, all work, and nothing stays behind."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import insula
from insula.store.machines import machine_folder
from insula.store.names import Home
from tests.framework.doors import run_cli
from tests.framework.fabrics import traces
from tests.framework.outside import Outside, outside

pytestmark = [pytest.mark.full, pytest.mark.root, pytest.mark.limit(900)]

_MANY = 50
_FORKS = 20
_AT_ONCE = 4


@pytest.fixture
def world() -> Iterator[Outside]:
    with outside() as made:
        yield made


def out(machine: insula.Machine, command: str) -> str:
    done = machine.exec("sh", "-c", command)
    assert done.code == 0, f"{machine.name}: {command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def all_of(machines: list[insula.Machine], command: str) -> list[str]:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda machine: out(machine, command), machines))


def test_fifty_machines_on_one_network_find_each_other_and_leave_nothing(home: Path, tiny: str) -> None:
    connection = insula.connect(home)
    before = traces(home)
    connection.create_network("crowd", "private")
    first = connection.run(tiny, name="crowd-0", memory="128M", network="crowd")
    machines = [first, *first.fork(_MANY - 1, name="crowd-{n}")]
    try:
        cards = [machine.show().nics[0] for machine in machines]
        for own in ([card.ipv4 for card in cards], [card.ipv6 for card in cards], [card.mac for card in cards]):
            assert None not in own
            assert len(set(own)) == _MANY
        assert all_of(machines, "cat /sys/class/net/eth0/address") == [card.mac for card in cards]
        assert [len(status.addresses) for status in connection.list() if status.name.startswith("crowd-")] == [2] * _MANY
        others = machines[:]
        chance = random.Random(_MANY)
        chance.shuffle(others)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda pair: out(pair[0], f"ping -c1 -W20 {pair[1].name}.insula"), zip(machines, others, strict=True)))
        assert len(connection.network("crowd").members) == _MANY
    finally:
        for machine in machines:
            machine.delete(force=True)
    assert connection.network("crowd").members == []
    connection.delete_network("crowd")
    assert traces(home) == before


class Echo:
    """Somebody out there who says the same again, to any number at once."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self._connections: list[socket.socket] = []
        server.settimeout(None)
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def port(self) -> int:
        port: int = self._server.getsockname()[1]
        return port

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while piece := connection.recv(65536):
                connection.sendall(piece)

    def close(self) -> None:
        for each in (self._server, *self._connections):
            with contextlib.suppress(OSError):  # its guest has hung up
                each.shutdown(socket.SHUT_RDWR)
        self._server.close()


def test_twenty_forks_at_once_are_on_the_network_and_their_parents_connections_live_on(
    home: Path, tiny: str, world: Outside
) -> None:
    connection = insula.connect(home)
    before = traces(home)
    echo = Echo(world.listen())
    parent = connection.run(tiny, name="fold", memory="128M", network="nat")
    # What is said comes back by one connection, from before the forks until after them.
    talk = (
        f"mkfifo /tmp/to; (nc {world.address} {echo.port} </tmp/to >/tmp/back) & (exec 3>/tmp/to; echo one >&3; sleep 100000) & "
    )
    out(parent, talk + "until grep -q one /tmp/back; do sleep 0.1; done")
    machines = [parent]
    try:
        machines += parent.fork(_FORKS, name="fold-{n}")
        cards = [machine.show().nics[0] for machine in machines]
        assert len({card.ipv4 for card in cards}) == len({card.mac for card in cards}) == _FORKS + 1
        assert all_of(machines, "hostname") == [machine.name for machine in machines]
        assert all_of(machines, "cat /sys/class/net/eth0/address") == [card.mac for card in cards]
        children = machines[1:]
        all_of(children, "ping -c1 -W20 fold.insula")
        assert all_of(children, f"echo hello | timeout 20 nc {world.address} {echo.port}") == ["hello"] * _FORKS
        out(parent, "(exec 4>/tmp/to; echo two >&4); until grep -q two /tmp/back; do sleep 0.1; done")
    finally:
        for machine in machines:
            machine.delete(force=True)
        echo.close()
    assert traces(home) == before


def test_twenty_forks_that_cannot_be_renumbered_work_side_by_side(home: Path, tiny: str, name: str, world: Outside) -> None:
    """A guest whose record says that it has no agent is told nothing: all twenty believe to be what it was, and others reach each
    by its own address."""
    connection = insula.connect(home)
    before = traces(home)
    echo = Echo(world.listen())
    machines = [connection.run(tiny, name=name, memory="128M", network="nat")]
    try:
        out(machines[0], "mkdir -p /www; httpd -p 80 -h /www")
        inner = machines[0].show().nics[0].ipv4
        snapshot = machines[0].snapshot("mute")
        record = machine_folder(Home(home), name) / "snapshots/mute/snapshot.json"
        record.write_text(record.read_text().replace('"agent": true', '"agent": false'))
        children = snapshot.fork(_FORKS, name=f"{name[:40]}-{{n}}")
        machines += children
        for child in children:
            run_cli(home, "exec", "--wait", "60", child.name, "--", "true")
            out(child, f"echo {child.name} > /www/index.html")
        assert len(set(all_of(children, "cat /sys/class/net/eth0/address; ip -4 -o address show dev eth0"))) == 1
        addresses = [child.show().nics[0].ipv4 or "" for child in children]
        assert len({inner, *addresses}) == _FORKS + 1
        assert list(map(fetched, addresses)) == [child.name for child in children]
        assert all_of(children, f"echo hello | timeout 20 nc {world.address} {echo.port}") == ["hello"] * _FORKS
        assert all_of(children[1:], f"wget -q -T 20 -O - http://{addresses[0]}/") == [children[0].name] * (_FORKS - 1)
    finally:
        for machine in machines:
            machine.delete(force=True)
        echo.close()
    assert traces(home) == before


def fetched(address: str) -> str:
    """What a machine's web server has to say, asked by the host."""
    with socket.create_connection((address, 80), 20) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")[2].decode().strip()
