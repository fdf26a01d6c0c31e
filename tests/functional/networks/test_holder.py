"""The holder of a fabric by itself: what it hands out, what the programs it starts may see and do, and how it ends."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import insula
from insula.errors import HostLacks
from insula.host import links, nft
from insula.host.holder import ROOM, SERVER_RIGHTS, Holder, Program, connect_holder, start_brief_holder, start_holder

pytestmark = pytest.mark.root
_UID = 1_234_567_890
_TUNGETIFF = 0x800454D2  # linux/if_tun.h


@contextlib.contextmanager
def _held(path: Path, *, own_user: bool) -> Iterator[Holder]:
    with start_holder(path, own_user=own_user)[0] as started:
        try:
            yield started
        finally:
            with contextlib.suppress(HostLacks):  # a test may have ended it
                started.quit()


@pytest.fixture(params=["own", "host's"])
def holder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Holder]:
    """With a user namespace of its own, as an ordinary user has it, and without."""
    with _held(tmp_path / "holder.sock", own_user=request.param == "own") as started:
        yield started
    assert connect_holder(tmp_path / "holder.sock") is None


_names = map("speaker{}".format, itertools.count())


def _said(holder: Holder, program: Program) -> str:
    """What a program says until it ends."""
    reading, writing = os.pipe()
    holder.start(next(_names), program, writing)
    os.close(writing)
    with open(reading, "rb") as stream:
        return stream.read().decode()


def test_taps_carry_frames_with_the_header(holder: Holder) -> None:
    tap = holder.tap("t1")
    links.apply("ip", ["link set t1 up"], holder.spaces)
    name, flags = struct.unpack("16sH22x", fcntl.ioctl(tap, _TUNGETIFF, bytes(40)))
    assert name.rstrip(b"\0") == b"t1"
    assert flags & 0x5002 == 0x5002  # IFF_VNET_HDR, IFF_NO_PI, IFF_TAP
    assert links.counters(holder.spaces)["t1"].up
    os.close(tap)
    end = time.monotonic() + 20  # who opened it for us may not have ended yet
    while "t1" in links.counters(holder.spaces):
        assert time.monotonic() < end


def test_names_that_cannot_be_are_refused(holder: Holder) -> None:
    with pytest.raises(HostLacks, match="Invalid argument"):
        holder.tap("t" * 40)
    with pytest.raises(HostLacks, match="Invalid argument"):
        holder.sysctl("../kernel/hostname", "mine")
    with pytest.raises(HostLacks, match="No such file or directory"):
        holder.start("nobody", Program(("/no/such/program",)))
    assert holder.children() == set()


def test_sockets_are_of_the_fabric(holder: Holder) -> None:
    links.apply("ip", ["address add 192.0.2.7/32 dev lo"], holder.spaces)
    with holder.socket(socket.AF_INET, socket.SOCK_STREAM, 0) as inside:
        inside.bind(("192.0.2.7", 9))
    with socket.socket() as outside, pytest.raises(OSError, match="Cannot assign"):
        outside.bind(("192.0.2.7", 9))


def test_a_program_in_a_room_sees_and_may_do_little(holder: Holder, tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    shown.mkdir(mode=0o755)
    (shown / "word").write_text("told")
    script = f"ls /; ls {ROOM}; cat {ROOM}/word; echo; touch {ROOM}/mine 2>&1; touch /usr/mine 2>&1; id -u; ls /proc/1 2>&1"
    uid = None if holder.spaces.user is not None else _UID
    said = _said(holder, Program(("/bin/sh", "-c", script), uid=uid, rights=SERVER_RIGHTS, folder=shown))
    places, _, rest = said.partition("word\ntold\n")
    assert set(places.split()) <= {"bin", "dev", "lib", "lib32", "lib64", "libx32", "n", "sbin", "usr"}
    assert rest.count("Read-only file system") == 2
    assert f"\n{uid or 0}\n" in rest
    assert "cannot access" in rest
    assert not (shown / "mine").exists()


def test_programs_have_only_the_rights_they_are_given(holder: Holder) -> None:
    """Told by what they can do: one that may administer the network makes a link, one that may nothing does not."""
    uid = None if holder.spaces.user is not None else _UID
    make = ("/usr/sbin/ip", "link", "add", "made", "type", "bridge")
    assert "not permitted" in _said(holder, Program(make, uid=uid, rights=0)).lower()
    _said(holder, Program(make, uid=uid, rights=SERVER_RIGHTS))
    assert "made" in links.counters(holder.spaces)


def test_programs_outside_are_outside_and_end_with_the_holder(tmp_path: Path) -> None:
    """Whatever they do to their rights: the one inside changes its user, the one outside is guarded."""
    with _held(tmp_path / "holder.sock", own_user=False) as holder:
        reading, writing = os.pipe()
        words = (
            "/bin/sh",
            "-c",
            "readlink /proc/self/ns/net; exec setpriv --reuid=12345 --regid=12345 --clear-groups sleep 1000",
        )
        holder.start("outside", Program(words, outside=True), writing)
        holder.start("inside", Program(("/bin/sleep", "1000"), uid=_UID, rights=0), writing)
        os.close(writing)
        with open(reading, "rb") as stream:
            assert stream.readline().decode().strip() == os.readlink("/proc/self/ns/net")
            assert holder.children() == {"outside", "inside"}
            holder.quit()
            assert select.select([stream], [], [], 20)[0]
            assert stream.read() == b""  # nobody has the pipe any more


def test_what_a_dead_holder_held_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "holder.sock"
    with start_holder(path, own_user=True)[0] as holder:
        tap = holder.tap("t1")
        reading, writing = os.pipe()
        holder.start("sleeper", Program(("/bin/sleep", "1000"), rights=0), writing)
        os.close(writing)
        pid = int(Path(f"/proc/{holder.pid}/stat").read_text().rpartition(")")[2].split()[1])
        gone = os.pidfd_open(pid)
        os.kill(pid, 9)
        assert select.select([gone], [], [], 20)[0]
        assert os.read(reading, 1) == b""  # the program ended, too
        os.close(gone)
        os.close(reading)
    assert connect_holder(path) is None
    holder, went_on = start_holder(path, own_user=True)
    with holder:
        assert went_on
        assert "t1" in links.counters(holder.spaces)
        holder.quit()
    os.close(tap)


@pytest.mark.parametrize("own_user", [True, False])
def test_a_brief_holder_goes_with_its_connection_and_all_it_started(own_user: bool) -> None:
    reading, writing = os.pipe()
    with start_brief_holder(own_user=own_user) as holder:
        os.close(holder.tap("t1"))
        holder.start("sleeper", Program(("/bin/sleep", "1000"), rights=0), writing)
        os.close(writing)
        inside = os.pidfd_open(holder.pid)
        assert not select.select([inside], [], [], 0)[0]
    assert select.select([inside], [], [], 20)[0]
    assert os.read(reading, 1) == b""  # the program ended, too
    os.close(inside)
    os.close(reading)


def test_a_brief_holder_goes_with_whoever_is_killed(tmp_path: Path) -> None:
    """Else a `kill -9` of the first command of a host, which tries what networks it can have, would leave one for ever."""
    script = (
        "from insula.host.holder import start_brief_holder\n"
        "holder = start_brief_holder(own_user=True)\n"
        "print(holder.pid, flush=True)\n"
        "input()"
    )
    words = [sys.executable, "-c", script]
    environment = os.environ | {"PYTHONPATH": str(Path(insula.__file__).parents[1]), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as asker:
        assert asker.stdout is not None
        inside = os.pidfd_open(int(asker.stdout.readline()))
        asker.kill()
    assert select.select([inside], [], [], 20)[0]
    os.close(inside)
    assert list(tmp_path.iterdir()) == []


def test_only_its_owner_is_heard(tmp_path: Path) -> None:
    """Even one to whom the socket was handed by mistake."""
    path = tmp_path / "holder.sock"
    script = (
        "import os, socket, sys; os.fchdir(int(sys.argv[1])); os.setresuid(65534, 65534, 65534)\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect('holder.sock'); print(s.recv(99))"
    )
    with _held(path, own_user=False) as holder:
        path.chmod(0o666)
        folder = os.open(tmp_path, os.O_RDONLY)
        tmp_path.chmod(0o711)
        try:
            argv = ["python3", "-c", script, str(folder)]
            answer = subprocess.run(argv, pass_fds=[folder], capture_output=True, text=True, check=False, timeout=20)
        finally:
            os.close(folder)
        assert answer.stdout == "b''\n" or "ConnectionReset" in answer.stderr
        assert holder.children() == set()  # it still hears us


def test_rules_are_loaded_whole_or_not_at_all(holder: Holder) -> None:
    with pytest.raises(HostLacks, match="refused our rules"):
        nft.apply(["add table inet one", "add chain inet two c"], holder.spaces)
    assert nft.objects(holder.spaces, "tables") == []
    nft.apply(["add table inet one"], holder.spaces)
    assert [each["table"]["name"] for each in nft.objects(holder.spaces, "tables")] == ["one"]


def test_a_refused_line_is_named_and_the_others_are_done(holder: Holder) -> None:
    lines = ["link add b1 type bridge", "link add b1 type bridge", "link set nobody up", "link set b1 up"]
    with pytest.raises(HostLacks, match="'ip link set nobody up': Cannot find device"):
        links.apply("ip", lines, holder.spaces, tolerated=links.THERE)
    assert links.counters(holder.spaces)["b1"].up
