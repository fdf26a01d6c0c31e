"""The room in which package scripts are root: what they see of the host, and what is left when they are gone."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.errors import ChildFailed, Interrupted
from insula.host.namespaces import hand_over, remove_handed_over, subordinate_range
from insula.images.progress import Progress, Watcher
from insula.images.room import Room
from tests.framework.processes import inhabitants

EPOCH = 1_700_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Below a folder that only its owner may enter, as an INSULA_HOME may be."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    yield closed / "room"
    assert list(closed.iterdir()) == []


def say(room: Room, *argv: str) -> str:
    with room.reading(argv, step="testing") as stream:
        return stream.read().decode().strip()


def test_its_root_is_nobody_here(folder: Path) -> None:
    with Room.open(folder, EPOCH, Watcher()) as room:
        assert say(room, "id", "-u") == "0"
        room.script("touch /work/mine; chown 33:33 /work/mine", step="testing", fraction=0)
        ids = subordinate_range()
        seen = (folder / "mine").stat()
        assert (seen.st_uid, seen.st_gid) == (ids.first_uid + 33, ids.first_gid + 33)
        assert ids.first_uid > 65535


def test_it_sees_nothing_of_the_host_but_programs(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "secret").chmod(0o666)
    with Room.open(folder, EPOCH, Watcher()) as room:
        known = "bin dev etc lib lib32 lib64 libx32 proc root run sbin tmp usr var work"
        assert set(say(room, "ls", "/").split()) <= set(known.split())
        for path in (
            tmp_path / "secret",
            "/etc/machine-id",
            "/etc/shadow",
            "/var/lib/dpkg/status",
            "/sys/kernel",
            "/dev/net/tun",
        ):
            with pytest.raises(ChildFailed):
                room.run(["test", "-e", os.fspath(path)], step="testing", fraction=0)
        assert say(room, "ls", "-A", "/root", "/tmp", "/work", "/var/tmp").split() == ["/root:", "/tmp:", "/var/tmp:", "/work:"]


@pytest.mark.parametrize("path", ["/usr/x", "/usr/bin/x", "/etc/ssl/certs/x", "/etc/alternatives/x", "/proc/sys/kernel/hostname"])
def test_it_cannot_write_what_is_the_hosts(folder: Path, path: str) -> None:
    if path.startswith("/etc") and not os.path.isdir(os.path.dirname(path)):
        pytest.skip(f"this host has no {os.path.dirname(path)}")
    name = os.uname().nodename
    with Room.open(folder, EPOCH, Watcher()) as room:
        if path.startswith("/proc"):
            room.script(f"echo evil > {path} || true", step="testing", fraction=0)
        else:
            with pytest.raises(ChildFailed):
                room.script(f"echo evil > {path}", step="testing", fraction=0)
    assert not path.startswith(("/usr", "/etc")) or not os.path.exists(path)
    assert os.uname().nodename == name


def test_it_cannot_gain_more(folder: Path) -> None:
    with Room.open(folder, EPOCH, Watcher()) as room:
        assert "NoNewPrivs:\t1" in say(room, "cat", "/proc/self/status")
        with pytest.raises(ChildFailed):
            room.run(["mknod", "/work/disk", "b", "254", "0"], step="testing", fraction=0)
        with pytest.raises(ChildFailed):
            room.run(["mount", "-t", "ext4", "/dev/vda", "/tmp"], step="testing", fraction=0)


def _gateway(room: Room) -> str:
    """Where the room's packets go first. Format: /proc/net/route of proc_pid_net(5)."""
    routes = [line.split() for line in say(room, "cat", "/proc/net/route").splitlines()[1:]]
    return next(socket.inet_ntoa(int(route[2], 16).to_bytes(4, sys.byteorder)) for route in routes if route[1] == "00000000")


def test_it_reaches_no_service_on_this_hosts_loopback(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, Room.open(folder, EPOCH, Watcher()) as room:
        if room.why_not_apart:
            pytest.skip(f"rooms share this host's network: {room.why_not_apart}")
        port = server.getsockname()[1]
        for address in ("127.0.0.1", _gateway(room)):
            with pytest.raises(ChildFailed) as error:
                room.script(f"exec timeout 2 bash -c 'exec 3<>/dev/tcp/{address}/{port}'", step="testing", fraction=0)
            refused = "refused" in error.value.output or "unreachable" in error.value.output
            assert refused or error.value.status == 124, error.value.output
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()


def test_what_it_leaves_running_ends_with_it(folder: Path) -> None:
    with Room.open(folder, EPOCH, Watcher()) as room:
        room.script("setsid sleep 600 >/dev/null 2>&1 & setsid sleep 600 & echo started", step="testing", fraction=0)
        assert inhabitants(folder) == []


def test_what_it_says_is_cleaned(folder: Path) -> None:
    seen: list[Progress] = []
    with Room.open(folder, EPOCH, Watcher(seen.append)) as room:
        room.run(["printf", r"a\033[2Jb\r\n\377c\n"], step="testing", fraction=0.5)
    told = [progress.line for progress in seen if progress.step == "testing"]
    assert told == ["", r"a\x1b[2Jb", r"\xffc"]  # shown, not obeyed


def test_a_build_that_is_told_to_stop_stops(folder: Path) -> None:
    stop = threading.Event()

    def report(progress: Progress) -> None:
        if progress.line == "ready":
            stop.set()

    with Room.open(folder, EPOCH, Watcher(report, stop.is_set)) as room, pytest.raises(Interrupted):
        room.script("echo ready; exec sleep 600", step="testing", fraction=0)


def test_data_reaches_it_and_time_stands_still(folder: Path) -> None:
    with Room.open(folder, EPOCH, Watcher()) as room:
        room.script(
            "cat > /work/got; date -d @$SOURCE_DATE_EPOCH +%s >> /work/got", step="testing", fraction=0, data=b"x" * 300_000
        )
        assert (folder / "got").read_bytes() == b"x" * 300_000 + b"%d\n" % EPOCH


def test_what_belongs_to_its_ids_can_be_removed(tmp_path: Path) -> None:
    folder = tmp_path / "room"
    folder.mkdir()
    hand_over(folder)
    assert folder.stat().st_uid == subordinate_range().first_uid
    remove_handed_over(folder)
    remove_handed_over(folder)
    assert not folder.exists()
