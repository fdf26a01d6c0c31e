"""A fork is nobody's twin: what two machines must not share is new in each, the connections and programs of the former life are
gone, nobody gets in before all that is done; and the machine it was copied from notices nothing."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

import insula
from insula.errors import InsulaError
from insula.guest.agent import prepare
from insula.guest.link import Link, open_link
from insula.store.machines import read_machine
from tests.framework.outside import Outside, outside

pytestmark = [pytest.mark.root, pytest.mark.limit(300)]  # root: who is outside is a namespace

SIBLINGS = 8
WHO = (
    "hostname; cat /etc/machine-id; cat /sys/class/net/e*/address; "
    "cat /proc/sys/kernel/random/uuid; dd if=/dev/urandom bs=16 count=1 2>/dev/null | od -An -tx1 | tr -d ' '"
)


class Server:
    """A server beyond this host that a guest has a connection to, and that connection."""

    def __init__(self, world: Outside) -> None:
        self.address = world.address
        self.listener = world.listen()
        self.port = self.listener.getsockname()[1]
        self.connection: socket.socket | None = None

    def accept(self) -> None:
        self.connection, _ = self.listener.accept()
        self.connection.settimeout(20)

    def close(self) -> None:
        self.listener.close()
        if self.connection:
            self.connection.close()


class Family(NamedTuple):
    parent: insula.Machine
    children: list[insula.Machine]
    before: list[str]  # what the parent was before it was forked
    outside: Server
    link: Link  # to the parent, with a program that was running when it was forked
    answers: list[str]  # of clients that wanted to get in as early as they could


def out(machine: insula.Machine, script: str) -> str:
    return machine.exec("sh", "-c", script, check=True).stdout.strip()


def who(machine: insula.Machine) -> list[str]:
    return out(machine, WHO).split()


def run_folder(home: Path, name: str) -> Path:
    return home / "machines" / name / "run"


@contextlib.contextmanager
def prying(home: Path, names: Sequence[str], answers: list[str]) -> Iterator[None]:
    """Meanwhile somebody asks each machine for its name, from the moment there is a keeper to ask."""
    over = threading.Event()

    def pry(name: str) -> None:
        while not over.is_set():
            try:
                with open_link(run_folder(home, name)) as link:
                    channel = link.open("exec", argv=["cat", "/proc/sys/kernel/hostname"], wait_ms=60_000)
                    answers.append(b"".join(data for _, data in channel).decode().strip())
                return
            except (InsulaError, OSError):
                over.wait(0.005)

    threads = [threading.Thread(target=pry, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


@pytest.fixture(scope="module")
def world() -> Iterator[Outside]:
    with outside() as made:
        yield made


@pytest.fixture(scope="module")
def family(home: Path, tiny: str, world: Outside) -> Iterator[Family]:
    """A tiny machine with an open connection, a running exec and a hook, and the children it was given then."""
    client = insula.connect(home)
    server, answers = Server(world), list[str]()
    made: list[insula.Machine] = []
    try:
        parent = client.run(tiny, name="parent", memory="128M", cold=True)
        made.append(parent)
        out(parent, "mkdir -p /etc/insula/fork.d; printf '#!/bin/sh\\necho $INSULA_FORMER_NAME $INSULA_NAME > /etc/forked\\n' "
            "> /etc/insula/fork.d/10-note; chmod +x /etc/insula/fork.d/10-note")  # fmt: skip
        out(parent, "mkfifo /tmp/in; (setsid sh -c 'exec 3<>/tmp/in; exec nc "
            f"{server.address} {server.port} <&3 >/tmp/heard 2>&1') >/dev/null 2>&1 </dev/null &")  # fmt: skip
        server.accept()
        link = open_link(run_folder(home, "parent"))
        talking = link.open("exec", argv=["sh", "-c", "echo ready; exec cat; : former-life"])
        assert talking.next(20) == (1, b"ready\n")
        before = who(parent)
        with prying(home, [f"child-{number}" for number in range(1, SIBLINGS + 1)], answers):
            made += parent.fork(SIBLINGS, name="child-{n}")
        yield Family(parent, made[1:], before, server, link, answers)
        link.close()
    finally:
        server.close()
        for machine in made:
            machine.delete(force=True)


def test_siblings_have_nothing_in_common(family: Family) -> None:
    told = [who(machine) for machine in (family.parent, *family.children)]
    assert {len(each) for each in told} == {5}
    for what in zip(*told, strict=True):
        assert len(set(what)) == SIBLINGS + 1, what


def test_each_is_who_its_record_says(family: Family, home: Path) -> None:
    for child in family.children:
        record = read_machine(home / "machines" / child.name)
        assert who(child)[:3] == [child.name, record.identity.machine_id, record.identity.mac]


def test_the_parent_stays_who_it_was(family: Family) -> None:
    assert who(family.parent)[:3] == family.before[:3]
    assert out(family.parent, "[ -e /etc/forked ] || echo none") == "none"


def test_connections_are_cut_in_the_children_alone(family: Family) -> None:
    for child in family.children:
        assert out(child, "grep -c ' 01 ' /proc/net/tcp || true") == "0"
        assert out(child, "pidof nc || echo none") == "none"  # it read the end
    assert family.outside.connection is not None
    family.outside.connection.sendall(b"still there?\n")
    out(family.parent, "until grep -q 'still there' /tmp/heard; do sleep 0.1; done; echo yes > /tmp/in")
    assert family.outside.connection.recv(100) == b"yes\n"


def test_a_running_exec_is_hung_up_in_the_children_and_goes_on_in_the_parent(family: Family) -> None:
    # Told by its parent process: an exec of the former life hung below the agent, as this one does.
    for child in family.children:
        out(child, "i=0; while pidof cat >/dev/null; do i=$((i+1)); [ $i -lt 50 ]; sleep 0.1; done")
    assert out(family.parent, "pidof cat") != ""


def test_hooks_ran_in_the_children(family: Family) -> None:
    for child in family.children:
        assert out(child, "cat /etc/forked") == f"parent {child.name}"


def test_nobody_got_in_before(family: Family) -> None:
    assert sorted(family.answers) == sorted(child.name for child in family.children)


def test_show_tells_what_was_made_new(family: Family) -> None:
    renewed = family.children[0].show().renewed
    assert renewed is not None
    assert renewed.left == {}
    assert {*renewed.done} == {
        "generation", "entropy", "connections", "clock", "machine-id", "hostname", "network", "hooks",
    }  # fmt: skip
    assert family.parent.show().renewed is None


def test_a_child_reaches_the_world(family: Family) -> None:
    script = f"nc -w 20 {family.outside.address} {family.outside.port} </dev/null & echo $!"
    assert out(family.children[0], script)
    connection, _ = family.outside.listener.accept()
    connection.close()


@pytest.mark.full
def test_the_agent_goes_first_for_a_moment_and_what_it_runs_does_not(family: Family) -> None:
    policies = "cut -d' ' -f41 /proc/1/stat /proc/self/stat"  # proc(5): 0 is ordinary, 2 before all ordinary ones
    seen = set()
    for number in range(5):
        (child,) = family.parent.fork(1, name=f"urgent-{number}")
        with contextlib.ExitStack() as gone:
            gone.callback(child.delete, force=True)
            agent, own = out(child, policies).split()
            assert own == "0"
            seen.add(agent)
            out(child, "until [ $(cut -d' ' -f41 /proc/1/stat) = 0 ]; do sleep 0.2; done")
        if "2" in seen:
            return
    pytest.fail(f"the agent was never urgent: {seen}")


TIMERS = ("apt-daily", "apt-daily-upgrade", "dpkg-db-backup", "e2scrub_all", "fstrim")


@pytest.fixture(scope="module")
def debians(home: Path, debian: str) -> Iterator[list[insula.Machine]]:
    """A Debian that has answered SSH and takes the time for three days ago, and two forks of it."""
    made: list[insula.Machine] = []
    try:
        made.append(insula.connect(home).run(debian, name="old", cold=True))
        out(
            made[0],
            "ssh-keyscan -t ed25519 127.0.0.1 >/dev/null 2>&1; timedatectl set-ntp false 2>/dev/null; date -s '3 days ago'",
        )
        made += made[0].fork(1, name="new-1")
        with open_link(home / "machines" / "old" / "run") as link:
            prepare(link)  # the second fork need not ask what its timers wait for: it knows it from its former life
        made += made[0].fork(1, name="new-2")
        yield made
    finally:
        for machine in made:
            machine.delete(force=True)


@pytest.mark.full  # two Debians, the better part of a minute and a half
def test_ssh_keys_are_new_and_used(debians: list[insula.Machine]) -> None:
    keys = []
    for machine in debians:
        served = out(machine, "ssh-keyscan -t ed25519 127.0.0.1 2>/dev/null | grep -v ^# | cut -d' ' -f3")
        assert served
        assert served == out(machine, "cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub")
        assert out(machine, "stat -c %a /etc/ssh/ssh_host_ed25519_key") == "600"
        keys.append(served)
    assert len(set(keys)) == 3


@pytest.mark.full  # two Debians, the better part of a minute and a half
def test_late_timers_do_not_fire_at_once(debians: list[insula.Machine]) -> None:
    for machine in debians[1:]:
        units = " ".join(f"{name}.timer" for name in TIMERS)
        out(machine, f"i=0; until systemctl is-active --quiet {units}; do i=$((i+1)); [ $i -lt 100 ]; sleep 0.2; done")
        services = " ".join(f"{name}.service" for name in TIMERS)
        assert out(machine, f"systemctl show -P InvocationID {services}") == "", "something was made up for"
        told = json.loads(out(machine, f"systemctl list-timers --output=json {units}"))
        assert len(told) == len(TIMERS)
        assert min(timer["next"] for timer in told) > time.time() * 1_000_000


@pytest.mark.full  # two Debians, the better part of a minute and a half
def test_services_know_the_fork(debians: list[insula.Machine]) -> None:
    for machine in debians:
        assert out(machine, "hostnamectl --static") == machine.name
        assert out(machine, "journalctl -q -n 1 --no-pager | wc -l") == "1"
        assert out(machine, "cat /var/lib/dbus/machine-id") == machine.show().id.replace("-", "")
        routed = "i=0; until ip -4 route | grep -q ^default; do i=$((i+1)); [ $i -lt 300 ]; sleep 0.2; done"
        assert out(machine, f"{routed}; cat /sys/class/net/en*/address") == machine.show().nics[0].mac
