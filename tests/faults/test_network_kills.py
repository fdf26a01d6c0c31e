"""`kill -9` of a command, of QEMU or of a keeper under machines on networks: a repair, or the next verb, heals it.

Each machine keeps its addresses and is reached by them and by its name; no card, rule, port, claim or process is nobody's.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import insula
from insula.errors import InsulaError, NotFound
from insula.store.machines import read_machine
from tests.faults.rewound import left_over, run_next, settled, strike
from tests.framework.doors import run_cli
from tests.framework.fabrics import amiss, traces
from tests.framework.points import Points

pytestmark = [pytest.mark.root, pytest.mark.limit(300)]

_PATIENCE = 20.0
_NAME, _NEIGHBOUR, _NETWORK = "wired", "neighbour", "den"
_DEEPEST = 8
# Each verb, and what is so before it: on the network `den` or not, publishing a port or not, suspended.
VERBS = {
    "run-networked": "",
    "fork-running": "den",
    "fork-two": "den",
    "restore": "den",
    "restore-discard": "den",
    "suspend": "den",
    "wake": "den suspended",
    "attach": "",
    "detach": "den",
    "publish": "",
    "unpublish": "published",
    "firewall": "den",
    "limit": "den",
    "unplug": "den",
    "delete": "den published",
}


@pytest.fixture(scope="module")
def neighbour(home: Path, tiny: str) -> Iterator[insula.Machine]:
    """A machine on both networks that nothing is done to: it looks for the others."""
    connection = insula.connect(home)
    before = traces(home)
    connection.create_network(_NETWORK, "private")
    machine = connection.run(tiny, name=_NEIGHBOUR, memory="128M", network=["nat", _NETWORK])
    yield machine
    for status in connection.list():
        if status.name.startswith((_NAME, _NEIGHBOUR)):
            connection.get(status.name).delete(force=True)
    connection.delete_network(_NETWORK)
    assert traces(home) == before


def _children(home: Path) -> list[str]:
    return [status.name for status in insula.connect(home).list() if status.name.startswith(f"{_NAME}-x")]


def _prepare(home: Path, wanted: str, port: int) -> insula.Machine:
    """The machine runs, or is suspended, as ``wanted``; there are no others."""
    connection = insula.connect(home)
    for child in _children(home):
        connection.get(child).delete(force=True)
    with contextlib.suppress(NotFound, InsulaError):
        if len(read_machine(home / "machines" / _NAME).disks[0].layers) > _DEEPEST:
            connection.get(_NAME).delete(force=True)
    try:
        machine = connection.get(_NAME)
    except NotFound:
        machine = connection.run("tiny", name=_NAME, memory="128M", network=["nat", _NETWORK])
        machine.exec("sh", "-c", "mkdir -p /www; echo here > /www/index.html; httpd -p 80 -h /www", check=True)
        machine.snapshot("base")
    if machine.state == "stopped":
        next(each for each in machine.snapshots() if each.name == "base").restore(keep=False)
    elif machine.state != "running":
        machine.start()
    for snapshot in machine.snapshots():
        if snapshot.name != "base":
            snapshot.delete()
    machine.unpublish()
    machine.set_firewall(clear=True)
    machine.limit_network(up=0, down=0)
    machine.set_link(True)
    on_it = len(machine.show().nics) > 1
    if ("den" in wanted.split()) != on_it:
        (machine.detach if on_it else machine.attach)(_NETWORK)
        if not on_it:  # by another card than `base` knows: who goes back to that has the former one again
            next(each for each in machine.snapshots() if each.name == "base").delete()
            machine.snapshot("base")
    if "published" in wanted:
        machine.publish(f"{port}:80")
    if "suspended" in wanted:
        machine.suspend()
    return machine


def _said(home: Path, name: str, *words: str) -> str:
    """What a command in the guest prints; its agent may be just about to answer again."""
    done = run_cli(home, "exec", "--wait", f"{_PATIENCE:g}", name, "--", *words)
    assert done.returncode == 0, f"{name}: {words}: {done.stdout.decode()}{done.stderr.decode()}"
    return done.stdout.decode()


def _check(home: Path, neighbour: insula.Machine, former: list[str | None], port: int) -> None:
    """After any death: see the module. ``former``: the machine's addresses before it."""
    connection = insula.connect(home)
    connection.repair_networks()
    run_next(home)
    there = [_NAME, *_children(home)]
    for name in there:
        run_cli(home, "snapshot", "delete", "--json", f"{name}@nothing")  # a verb that finishes the dead one's work
        assert settled(home, name) in ("running", "stopped", "suspended", None)
    assert left_over(home) == []
    assert [status.problem for status in connection.list() if status.problem] == []
    assert amiss(home) == []
    for name in there:
        with contextlib.suppress(NotFound):
            machine = connection.get(name)
            if machine.state != "running" and name == _NAME:
                machine.start()
            if machine.state == "running":
                _check_guest(home, neighbour, machine, port)
    assert amiss(home) == []
    with contextlib.suppress(NotFound):
        now = [nic.ipv4 for nic in connection.get(_NAME).show().nics]
        assert now[: len(former)] == former[: len(now)]


def _unreached(neighbour: insula.Machine, machine: insula.Machine, target: str) -> str:
    """What both know when no answer comes for long, longer than a neighbour takes to forget who had an address before (arp(7):
    45 s, and the probes); empty when one does."""
    script = f"for attempt in $(seq 75); do ping -c1 -W1 {target} && exit 0; done; exit 1"
    if neighbour.exec("sh", "-c", script).code == 0:
        return ""
    known = [each.exec("sh", "-c", "ip address; ip route; ip neigh").stdout for each in (machine, neighbour)]
    return "\n".join([f"{machine.name} at {target}:", *known])


def _check_guest(home: Path, neighbour: insula.Machine, machine: insula.Machine, port: int) -> None:
    nics, name = machine.show().nics, machine.name
    told = _said(home, name, "sh", "-c", "cat /sys/class/net/eth*/address").split()
    assert sorted(told) == sorted(nic.mac for nic in nics)
    shown = _said(home, name, "ip", "-4", "-o", "address")
    for nic in nics:
        if nic.up:
            assert f" {nic.ipv4}/" in shown
            assert _unreached(neighbour, machine, nic.ipv4 or "") == ""
    if all(nic.up for nic in nics):
        assert _unreached(neighbour, machine, f"{name}.insula") == ""
    if machine.ports():
        _said(home, name, "sh", "-c", "pidof httpd || { mkdir -p /www; httpd -p 80 -h /www; }")  # it may have booted
    for each in machine.ports():
        assert each.listening, each
        with socket.create_connection(("127.0.0.1", port), 20) as connected:
            connected.sendall(b"GET / HTTP/1.0\r\n\r\n")
            connected.recv(1000)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port: int = reserved.getsockname()[1]
        return port


def _kill(home: Path, neighbour: insula.Machine, verb: str, letter: str, point: int) -> int:
    """One round; how many points came."""
    port = _free_port()
    machine = _prepare(home, VERBS[verb], port)
    former = [nic.ipv4 for nic in machine.show().nics]
    told = {"VICTIM_PORT": str(port), "VICTIM_SPARED": _NEIGHBOUR}
    return strike(home, f"{letter}c{point}", verb, _NAME, lambda _: _check(home, neighbour, former, port), "killed", **told)


@pytest.mark.full
@pytest.mark.sampled(6)
@pytest.mark.limit(1800)
@pytest.mark.parametrize("verb", VERBS)
def test_a_command_killed_before_a_change_leaves_networks_in_order(
    home: Path, neighbour: insula.Machine, verb: str, points: Points
) -> None:
    points.each(lambda point: _kill(home, neighbour, verb, "", point), rounds=4, least=10)


@pytest.mark.full
@pytest.mark.sampled(8)
@pytest.mark.limit(1800)
@pytest.mark.parametrize("letter", ["q", "Q", "k", "K"])
@pytest.mark.parametrize("verb", [verb for verb, before in VERBS.items() if "suspended" not in before])
def test_a_qemu_or_keeper_killed_before_a_change_leaves_networks_in_order(
    home: Path, neighbour: insula.Machine, verb: str, letter: str, points: Points
) -> None:
    points.each(lambda point: _kill(home, neighbour, verb, letter, point), rounds=2, least=10, kind=verb)
