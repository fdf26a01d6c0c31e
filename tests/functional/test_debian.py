"""Debian machines: real systems that boot themselves, reach the network, and share nothing that must be unique."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import insula

pytestmark = pytest.mark.limit(300)


@pytest.fixture(scope="module")
def server(home: Path, debian: str) -> Iterator[insula.Machine]:
    """A running Debian with the default shape."""
    with insula.connect(home).run(debian) as machine:
        yield machine


@pytest.fixture(scope="module")
def other(home: Path, debian: str) -> Iterator[insula.Machine]:
    """A second one beside it, which boots by UEFI and has a shape of its own. It may be stopped, and is started again then."""
    machine = insula.connect(home).run(debian, name="other", firmware="uefi", disk="20G", memory="768M", cpus=2)
    yield machine
    machine.delete(force=True)


def _out(machine: insula.Machine, script: str) -> str:
    return machine.exec("sh", "-c", script, check=True).stdout.strip()


def test_it_is_debian_with_an_init_of_its_own_and_nothing_failed(server: insula.Machine) -> None:
    assert _out(server, ". /etc/os-release; echo $ID $VERSION_ID") == "debian 13"
    assert _out(server, "cat /proc/1/comm") == "systemd"
    assert server.exec("systemctl", "is-system-running", "--wait").stdout.strip() == "running", _out(
        server, "systemctl --failed --no-legend"
    )


def test_it_knows_its_name_and_id(server: insula.Machine, home: Path) -> None:
    assert _out(server, "hostname") == server.name
    assert _out(server, "cat /etc/machine-id") == server.show().id.replace("-", "")


def test_it_has_the_shape_asked_for(server: insula.Machine) -> None:
    assert _out(server, "nproc") == "1"
    total = int(_out(server, "awk '/MemTotal/ { print $2 }' /proc/meminfo"))
    assert total > 440 * 1024, "of 512 MiB the kernel keeps too much to itself"
    assert int(_out(server, "lsblk -bndo SIZE /dev/vda")) == 10 << 30
    assert int(_out(server, "df --output=size -B1 / | tail -1")) > 9 << 30


def test_apt_works_inside(server: insula.Machine) -> None:
    server.exec("apt-get", "update", "-qq", "--error-on=any", check=True)  # by itself it only warns of what it cannot fetch
    server.exec("apt-get", "install", "-y", "-qq", "--no-install-recommends", "hello", check=True)
    assert _out(server, "hello") == "Hello, world!"


def test_the_hosts_loopback_is_out_of_reach(server: insula.Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            assert _heard(listener, 5), "the control does not work"
        for address in ("10.0.2.2", "10.0.2.3", "127.0.0.1"):
            script = f"timeout 2 bash -c 'exec 3<>/dev/tcp/{address}/{port}'"
            assert server.exec("bash", "-c", script).code != 0
        assert not _heard(listener, 0)


def _heard(listener: socket.socket, timeout: float) -> bool:
    """Whether somebody connects within ``timeout`` seconds."""
    if not select.select([listener], [], [], timeout)[0]:
        return False
    listener.accept()[0].close()
    return True


@pytest.mark.full  # another boot
def test_two_machines_share_nothing_that_must_be_unique(server: insula.Machine, other: insula.Machine) -> None:
    asked = (
        "cat /etc/machine-id; cat /etc/ssh/ssh_host_*_key.pub; cat /sys/class/net/en*/address; cat /proc/sys/kernel/random/uuid"
    )
    for each in (server, other):
        each.exec("sh", "-c", "systemctl start insula-host-keys.service", check=True)
    first, second = _out(server, asked).splitlines(), _out(other, asked).splitlines()
    assert len(first) >= 4
    assert not set(first) & set(second)


def test_it_boots_by_uefi_with_a_bigger_disk_and_comes_back_after_a_stop(other: insula.Machine) -> None:
    assert _out(other, "test -d /sys/firmware/efi && echo uefi") == "uefi"
    assert _out(other, "nproc") == "2"
    other.exec("systemctl", "is-system-running", "--wait")
    assert int(_out(other, "df --output=size -B1 / | tail -1")) > 18 << 30
    _out(other, "echo kept > /root/note")
    other.stop()
    assert other.status.ended is not None
    assert other.status.ended.reason == "guest-shutdown"
    other.start()
    assert _out(other, "cat /root/note") == "kept"


@pytest.mark.full
def test_debian_12_is_a_machine_too(home: Path) -> None:
    with insula.connect(home).run("debian:12") as machine:
        assert _out(machine, ". /etc/os-release; echo $ID $VERSION_ID") == "debian 12"
        assert tuple(map(int, _out(machine, "uname -r").split(".")[:2])) >= (6, 12), "an older kernel does not notice a fork"
        machine.exec("apt-get", "update", "-qq", "--error-on=any", check=True)
