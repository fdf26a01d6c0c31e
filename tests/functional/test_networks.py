"""Machines on networks: addresses, names, the outside, ports, firewalls, cables, and what becomes of it in forks and restores."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

import insula
from insula.client.local import LocalClient
from insula.errors import AlreadyExists, GuestError, NotFound, UsageError, WrongState
from insula.host.holder import connect_holder
from insula.model import requests
from insula.model.network import Firewall, NetworkSpec, Profile, Publish, parse_rule
from insula.model.spec import MachineSpec
from insula.networks.forwarders import publish
from insula.networks.ground import attached_cards
from insula.networks.plan import Attached
from insula.operations import spare, warm
from insula.store.machines import machine_folder
from insula.store.names import Home
from tests.framework.doors import popen_cli, run_cli
from tests.framework.outside import Outside, outside

pytestmark = [pytest.mark.root, pytest.mark.limit(180)]


@pytest.fixture(scope="module")
def world() -> Iterator[Outside]:
    with outside() as made:
        yield made


class Lab(NamedTuple):
    one: insula.Machine
    two: insula.Machine
    hermit: insula.Machine


@pytest.fixture(scope="module")
def lab(home: Path, tiny: str) -> Iterator[Lab]:
    """Two machines on the default network and on a private one, and one that is on another private one alone."""
    connection = insula.connect(home)
    for network in ("lab", "cell"):
        connection.create_network(network, "private")
    made = [
        connection.run(tiny, name="net-one", memory="128M", network=["nat", "lab"]),
        connection.run(tiny, name="net-two", memory="128M", network=["nat", "lab"]),
        connection.run(tiny, name="net-hermit", memory="128M", network="cell"),
    ]
    yield Lab(*made)
    for machine in made:
        machine.delete(force=True)
    for network in ("lab", "cell"):
        connection.delete_network(network)


def out(machine: insula.Machine, command: str) -> str:
    return machine.exec("sh", "-c", command).stdout.strip()


def works(machine: insula.Machine, command: str) -> bool:
    return machine.exec("sh", "-c", command).code == 0


def address(machine: insula.Machine, card: int = 0) -> str:
    ipv4 = machine.show().nics[card].ipv4
    assert ipv4 is not None
    return ipv4


def answer(server: socket.socket, text: bytes) -> threading.Thread:
    """Answer one connection with ``text`` and close it."""

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(text)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


def test_machines_of_a_network_know_each_other_by_name_and_address(lab: Lab) -> None:
    addresses = [address(machine, card) for machine in (lab.one, lab.two) for card in (0, 1)]
    assert len(set(addresses)) == 4
    assert works(lab.one, f"ping -c1 -W5 {address(lab.two)}")
    assert works(lab.one, f"ping -c1 -W5 {address(lab.two, 1)}")
    assert works(lab.one, "ping -c1 -W5 net-two.insula")
    assert lab.one.status.addresses == [each for nic in lab.one.show().nics for each in (nic.ipv4, nic.ipv6)]
    assert works(lab.one, f"ping -6 -c1 -W5 {lab.two.show().nics[0].ipv6}")


def test_networks_do_not_leak_into_each_other(lab: Lab, world: Outside) -> None:
    for target in (address(lab.one), address(lab.one, 1), world.near, "net-one.insula"):
        assert not works(lab.hermit, f"ping -c1 -W1 {target}"), target
    assert not works(lab.one, f"ping -c1 -W1 {address(lab.hermit)}")


def test_the_outside_is_reached_and_the_host_is_not(lab: Lab, world: Outside) -> None:
    with world.listen() as server:
        thread = answer(server, b"from afar\n")
        assert out(lab.one, f"nc -w5 {world.address} {server.getsockname()[1]}") == "from afar"
        thread.join(20)
    with greeting(socket.create_server((world.near, 0))) as port:
        assert not reaches(lab.one, world.near, port)
    assert not works(lab.hermit, f"ping -c1 -W1 {world.address}")


def test_a_published_port_leads_in_until_it_is_taken_back(home: Path, lab: Lab) -> None:
    lab.one.exec("sh", "-c", "mkdir -p /www; echo here > /www/index.html; httpd -p 80 -h /www", check=True)
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    shown = lab.one.publish(f"{port}:80")
    assert [(each.host, each.guest_port, each.listening) for each in shown] == [(f"127.0.0.1:{port}", 80, True)]
    assert fetched(port) == "here"
    with pytest.raises(AlreadyExists, match="net-one") as clash:
        lab.two.publish(f"{port}:80")
    assert clash.value.code == "port_taken"
    with pytest.raises(AlreadyExists, match="net-one") as everywhere:
        lab.two.publish(f"0.0.0.0:{port}:80")
    assert everywhere.value.code == "port_taken"
    lab.one.rename("net-uno")
    assert fetched(port) == "here"
    with pytest.raises(AlreadyExists, match="net-uno"):
        publish(Home(home), Attached(lab.two.show().nics[0], "net-two", "other", NetworkSpec("nat")), Publish(port, 80))
    lab.one.rename("net-one")
    lab.one.unpublish()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)
    with socket.create_server(("127.0.0.1", port)), pytest.raises(AlreadyExists):  # somebody else's
        lab.one.publish(f"{port}:80")
    assert lab.one.ports() == []


def reaches(machine: insula.Machine, address: str, port: int) -> bool:
    """Whether a TCP connection to a server that says hello comes about."""
    return out(machine, f"timeout 4 nc -w2 {address} {port} </dev/null") == "hello"


@contextlib.contextmanager
def greeting(server: socket.socket) -> Iterator[int]:
    """Say hello to whoever connects; the port."""
    server.settimeout(None)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.sendall(b"hello\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(10)


def connected(address: str, port: int) -> socket.socket:
    """A connection, as soon as somebody listens."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection((address, port), 20)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def fetched(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        received = b""
        while piece := connection.recv(65536):
            received += piece
    return received.partition(b"\r\n\r\n")[2].decode().strip()


def test_a_firewall_is_obeyed_at_once_also_by_what_is_going_on(lab: Lab, world: Outside) -> None:
    with world.listen() as server:
        port = server.getsockname()[1]
        flow = threading.Thread(
            target=lambda: lab.two.exec("sh", "-c", f"while echo on; do sleep 0.1; done | nc {world.address} {port}"), daemon=True
        )
        flow.start()
        connection, _ = server.accept()
        with connection:
            connection.settimeout(20)
            assert connection.recv(100)
            lab.two.set_firewall(add=[f"deny to {world.address}"])
            connection.settimeout(3)
            with pytest.raises(TimeoutError):
                while connection.recv(65536):
                    pass
    lab.two.set_firewall(clear=True)
    with greeting(world.listen()) as port:
        assert reaches(lab.two, world.address, port)
    flow.join(30)


def test_profiles_say_what_is_open_where_no_rule_does(lab: Lab, world: Outside) -> None:
    with greeting(world.listen()) as port:
        profiles: list[tuple[Profile, bool]] = [("none", False), ("internet-only", True), ("open", True)]
        for profile, outside_is_open in profiles:
            lab.two.set_firewall(profile=profile)
            assert reaches(lab.two, world.address, port) is outside_is_open, profile
    lab.two.set_firewall(add=["deny from machine:net-one icmp"])
    assert not works(lab.one, f"ping -c1 -W1 {address(lab.two)}")
    lab.two.set_firewall(remove=["deny from machine:net-one icmp"])
    assert works(lab.one, f"ping -c1 -W5 {address(lab.two)}")
    lab.two.set_firewall(isolated=True)
    assert not works(lab.two, f"ping -c1 -W1 {address(lab.one)}")
    lab.two.set_firewall(clear=True, isolated=False)
    assert works(lab.two, f"ping -c1 -W5 {address(lab.one)}")


def test_a_rule_that_names_a_machine_means_whoever_is_called_so(home: Path, lab: Lab) -> None:
    """It follows a renaming, and whom it names need not be what it was when the rule was made."""
    with pytest.raises(NotFound, match="net-onne") as unknown:
        lab.two.set_firewall(add=["deny from machine:net-onne"])
    assert "net-one" in (unknown.value.hint or "")
    lab.two.set_firewall(add=["deny from machine:net-one icmp"])
    lab.one.rename("net-uno")
    assert [rule.peer for rule in lab.two.set_firewall().rules] == ["machine:net-uno"]
    assert not works(lab.one, f"ping -c1 -W1 {address(lab.two)}")
    assert {"deny from machine:net-uno icmp"} <= {rule for card in lab.two.traffic() for rule, met in card.rules.items() if met}
    told = run_cli(home, "firewall", "show", lab.two.name).stdout.decode()
    assert re.search(r"^deny from machine:net-uno icmp  \([1-9][0-9]* packets?\)$", told, re.MULTILINE), told
    assert re.search(r"packets? met deny from machine:net-uno icmp", run_cli(home, "show", lab.two.name).stdout.decode())
    lab.one.rename("net-one")
    lab.hermit.rename("net-uno")
    assert not works(lab.one, f"ping -c1 -W1 {address(lab.two)}")
    lab.hermit.rename("net-hermit")
    lab.two.set_firewall(clear=True)
    assert works(lab.one, f"ping -c1 -W5 {address(lab.two)}")


def test_a_card_is_plugged_in_and_pulled_out_while_the_machine_runs(lab: Lab) -> None:
    assert not works(lab.one, "ping -c1 -W1 net-hermit.insula")
    lab.one.attach("cell")
    assert works(lab.one, f"ping -c1 -W5 {address(lab.hermit)}")
    for name in ("net-hermit", "net-two", "net-one"):  # of whichever of its networks
        assert works(lab.one, f"ping -c1 -W5 {name}.insula"), name
    assert not works(lab.two, "ping -c1 -W1 net-hermit.insula")
    before = lab.one.snapshot("with-three-cards")
    lab.one.detach("cell")
    assert len(lab.one.show().nics) == 2
    assert not works(lab.one, f"ping -c1 -W1 {address(lab.hermit)}")
    before.restore(keep=False)
    assert works(lab.one, f"ping -c1 -W5 {address(lab.hermit)}")
    lab.one.detach("cell")
    before.delete()


def test_a_pulled_cable_carries_nothing(lab: Lab) -> None:
    lab.two.set_link(False, "nat")
    assert not works(lab.one, f"ping -c1 -W1 {address(lab.two)}")
    assert works(lab.one, f"ping -c1 -W5 {address(lab.two, 1)}")
    lab.two.set_link(True)
    assert works(lab.one, f"ping -c1 -W5 {address(lab.two)}")


def test_forks_have_addresses_and_names_of_their_own_and_their_network_works_at_once(
    home: Path, lab: Lab, forget: Callable[[str], None]
) -> None:
    children = lab.one.fork(3, name="net-child-{n}")
    for child in children:
        forget(child.name)
    family = [lab.one, *children]
    assert len({address(machine) for machine in family}) == len(family)
    for child in children:
        nics = child.show().nics
        assert out(child, "cat /sys/class/net/eth0/address") == nics[0].mac
        assert f"{nics[0].ipv4}/" in out(child, "ip -4 address show dev eth0")
        assert works(child, f"ping -c1 -W5 {address(lab.one)}")
        assert works(lab.two, f"ping -c1 -W5 {child.name}.insula")
        assert works(lab.two, f"ping -c1 -W5 {address(child, 1)}")
    for child in children:
        child.delete(force=True)


def test_a_restore_keeps_addresses_and_ports(home: Path, tiny: str, name: str) -> None:
    machine = insula.connect(home).run(tiny, name=name, memory="128M")
    machine.exec("sh", "-c", "mkdir -p /www; echo before > /www/index.html; httpd -p 80 -h /www", check=True)
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    machine.publish(f"{port}:80")
    was = address(machine)
    snapshot = machine.snapshot("then")
    machine.exec("sh", "-c", "echo after > /www/index.html", check=True)
    assert fetched(port) == "after"
    snapshot.restore(keep=False)
    assert address(machine) == was
    assert fetched(port) == "before"
    machine.suspend()
    machine.start()
    assert fetched(port) == "before"


def test_what_passes_a_card_is_counted_and_written_down(home: Path, lab: Lab) -> None:
    before = lab.two.traffic()[0]
    with popen_cli(home, "capture", lab.two.name, "-") as capture:
        assert capture.stdout is not None
        header = capture.stdout.read(24)
        assert struct.unpack("<IHH", header[:8]) == (0xA1B2C3D4, 2, 4)
        assert works(lab.one, f"ping -c3 -W5 {address(lab.two)}")
        size = struct.unpack("<IIII", capture.stdout.read(16))[2]
        frame = capture.stdout.read(size)
        assert len(frame) == size >= 42
    after = lab.two.show().cards[0]
    assert lab.two.traffic()[0].packets_sent >= after.packets_sent
    assert after.packets_received >= before.packets_received + 3
    assert after.sent > before.sent


def test_a_limit_is_kept_and_shown(lab: Lab) -> None:
    """About 1 Mbit/s for 512 KiB: four seconds, where a tap without limit needs a twentieth of one."""
    lab.two.limit_network(down="1mbit", network="nat")
    began = time.monotonic()
    receiver = threading.Thread(target=lab.two.exec, args=("sh", "-c", "nc -l -p 5000 | wc -c > /tmp/received"), daemon=True)
    receiver.start()
    with connected(address(lab.two), 5000) as connection:  # as root the host reaches its machines
        connection.sendall(bytes(8 << 16))
    receiver.join(60)
    assert out(lab.two, "cat /tmp/received") == str(8 << 16)
    assert time.monotonic() - began > 2
    assert lab.two.show().nics[0].rates.down == 1_000_000
    lab.two.limit_network(down=0)


def test_addresses_asked_for_are_given_once(home: Path, tiny: str, name: str, lab: Lab) -> None:
    taken = address(lab.one)
    done = run_cli(home, "create", "--json", "--name", name, "--network", f"nat,{taken}", "tiny")
    assert json.loads(done.stderr)["code"] == "address_taken"
    subnet = taken.rpartition(".")[0]
    free = next(f"{subnet}.{last}" for last in range(200, 250) if f"{subnet}.{last}" not in (taken, address(lab.two)))
    assert run_cli(home, "create", "-q", "--name", name, "--network", f"nat,{free}", "tiny").returncode == 0
    assert insula.connect(home).get(name).start().show().nics[0].ipv4 == free


def test_what_cannot_be_is_refused_with_nothing_left(home: Path, tiny: str, lab: Lab) -> None:
    connection = insula.connect(home)
    there = [network.name for network in connection.networks()]
    with pytest.raises(UsageError) as overlap:
        connection.create_network("twin", "nat", subnet=connection.network("nat").ipv4 or "")
    assert overlap.value.code == "subnet_taken"
    with pytest.raises(AlreadyExists):
        connection.create_network("lab", "private")
    with pytest.raises(WrongState) as used:
        connection.delete_network("lab")
    assert (used.value.code, used.value.message) == ("network_in_use", "lab is in use by net-one, net-two")
    with pytest.raises(NotFound):
        connection.create(tiny, name="nobody", network="labb")
    with pytest.raises(NotFound, match="net-onne"):
        connection.create(tiny, name="nobody", firewall=Firewall(rules=(parse_rule("deny to machine:net-onne"),)))
    assert [network.name for network in connection.networks()] == there
    assert {member.machine for member in connection.network("lab").members} == {"net-one", "net-two"}


def test_a_firewall_is_there_from_the_first_instant(home: Path, tiny: str, name: str, world: Outside) -> None:
    firewall = Firewall(profile="none", rules=(parse_rule(f"allow to {world.address} tcp 7000"),))
    machine = insula.connect(home).run(tiny, name=name, memory="128M", firewall=firewall)
    with greeting(world.listen(7000)), greeting(world.listen(7001)):
        assert reaches(machine, world.address, 7000)
        assert not reaches(machine, world.address, 7001)


def test_helpers_that_were_killed_are_there_again_after_a_repair(home: Path, lab: Lab) -> None:
    killed = kill_helpers(home, "dnsmasq")
    assert killed
    assert not works(lab.one, "nslookup net-two.insula")
    insula.connect(home).repair_networks()
    assert works(lab.one, "nslookup net-two.insula")
    assert works(lab.one, "ping -c1 -W5 net-two.insula")


@pytest.mark.parametrize("failing", ["spare", "warm"])
def test_what_could_not_be_made_ahead_leaves_no_card_and_no_address(
    home: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*words: object, **named: object) -> NoReturn:
        raise GuestError("it does not answer", code="agent_timeout")

    snapshot = lab.one.snapshot("ahead")
    before = set(attached_cards(Home(home))), claimed(home)
    request = requests.SetSpares(origin=f"{lab.one.name}@ahead", count=1)
    if failing == "warm":
        request = requests.SetSpares(origin="tiny", count=1, spec=MachineSpec(memory=160 << 20))
    monkeypatch.setattr(*((spare, "rehearse", fail) if failing == "spare" else (warm, "wait_idle", fail)))
    with pytest.raises(GuestError, match="does not answer"):
        LocalClient(home).do(request)
    assert (set(attached_cards(Home(home))), claimed(home)) == before
    if failing == "spare":
        LocalClient(home).do(requests.SetSpares(origin=request.origin, count=0))
    snapshot.delete()


def claimed(home: Path) -> list[bytes]:
    """What addresses are given away."""
    return sorted(path.read_bytes() for path in (home / "networks").rglob("*") if path.is_file())


def test_a_machine_whose_card_was_lost_gets_a_new_one_at_a_repair(home: Path, lab: Lab) -> None:
    """Both halves of what keeps the networks die at once: QEMU lives, and what its card hung on is gone."""
    was = [nic.ipv4 for nic in lab.one.show().nics]
    assert lab.one.show().problem is None
    kill_holder(home)
    assert "insula network repair" in str(lab.one.show().problem)
    assert {status.name for status in insula.connect(home).list() if status.problem} == {"net-one", "net-two", "net-hermit"}
    told = insula.connect(home).repair_networks()
    assert {f"{name} had lost its network card: it has a new one" for name in ("net-one", "net-two", "net-hermit")} <= set(told)
    assert [nic.ipv4 for nic in lab.one.show().nics] == was
    assert works(lab.one, f"ping -c1 -W5 {address(lab.two)}")
    assert works(lab.one, f"ping -c1 -W5 {address(lab.two, 1)}")
    assert works(lab.one, "ping -c1 -W5 net-two.insula")
    assert insula.connect(home).repair_networks() == []
    assert [status.problem for status in insula.connect(home).list() if status.problem] == []


def kill_holder(home: Path) -> None:
    """Both its processes, and return when they have ended."""
    holder = connect_holder(home / "fabric/holder.sock")
    assert holder is not None
    with holder:
        inside = holder.pid
    outer = int(Path(f"/proc/{inside}/stat").read_text().rpartition(")")[2].split()[1])
    ends = [os.pidfd_open(pid) for pid in (outer, inside)]
    for end in ends:
        signal.pidfd_send_signal(end, signal.SIGKILL)
    for end in ends:
        assert select.select([end], [], [], 20)[0]
        os.close(end)


def kill_helpers(home: Path, program: str) -> list[int]:
    """The processes of this name that hold something open below the home's fabric."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if (entry / "comm").read_text().strip() == program and str(home / "fabric") in str(
                    [os.readlink(link) for link in (entry / "fd").iterdir()]
                ):
                    os.kill(int(entry.name), signal.SIGKILL)
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_forks_that_cannot_be_renumbered_are_somebody_else_outside(
    home: Path, tiny: str, name: str, forget: Callable[[str], None], world: Outside
) -> None:
    """A guest whose record says that it has no agent is told nothing, and believes to be what it was. (To the machine that has
    that address outside it cannot speak: that is itself.)"""
    machine = insula.connect(home).run(tiny, name=name, memory="128M")
    machine.exec("sh", "-c", "mkdir -p /www; echo same > /www/index.html; httpd -p 80 -h /www", check=True)
    was = address(machine)
    machine.snapshot("mute")
    record = machine_folder(Home(home), name) / "snapshots/mute/snapshot.json"
    record.write_text(record.read_text().replace('"agent": true', '"agent": false'))
    children = machine.snapshots()[0].fork(2, name=f"{name[:40]}-{{n}}")
    for child in children:
        forget(child.name)
    with greeting(world.listen()) as port:
        for child in children:
            assert_is_another(home, child, was, world, port)
        before = children[0].snapshot("apart")
        before.restore(keep=False)  # beside the guest that it was, in whose place it comes
        assert_is_another(home, children[0], was, world, port)


def assert_is_another(home: Path, child: insula.Machine, inner: str, world: Outside, port: int) -> None:
    """It takes itself for who it was, others know it by its own address, and it speaks with them."""
    run_cli(home, "exec", "--wait", "60", child.name, "--", "true")
    assert f"{inner}/" in out(child, "ip -4 address show dev eth0")
    assert address(child) != inner
    assert out(child, f"nc -w20 {world.address} {port} </dev/null") == "hello"
    with connected(address(child), 80) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b"same" in b"".join(iter(lambda: connection.recv(65536), b""))
