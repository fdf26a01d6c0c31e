"""The rooms of what serves networks (dnsmasq, who passes published ports on): the probe, run as such a program, gets nowhere but
into the network that it is to serve."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.host.holder import ROOM, SERVER_RIGHTS, Holder, Program, start_holder
from insula.host.native import native_path
from insula.isolation.server import start_server
from tests.framework.doors import cli_environment
from tests.framework.ordinary import with_a_home
from tests.framework.project import ROOT

pytestmark = pytest.mark.root
_UID = 1_300_000_000 + os.getpid()  # nobody else's: the probe makes as many processes as one user may
# With the right to administer its network, and to have raw sockets of it: both are its work.
_ITS_WORK = {"have a netlink socket", "send a datagram", "have a raw socket"}
# Its user is the one who started it, and so are that user's other processes; from Linux 5.14 on they are not counted along.
_A_USERS = {"be root", "start processes without end"}
_NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "cgroup")


@pytest.fixture(params=["user", "root"])
def holder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Holder]:
    """As an ordinary user has it, and as root."""
    with start_holder(tmp_path / "holder.sock", own_user=request.param == "user")[0] as started:
        yield started
        started.quit()


def _uid(holder: Holder) -> int | None:
    return None if holder.spaces.user is not None else _UID


def _tried(holder: Holder, folder: Path, rights: int) -> dict[str, str]:
    """What the probe says of each attempt when it is run as what serves networks is."""
    folder.mkdir(mode=0o755)
    shutil.copy(native_path("insula-probe"), folder / "probe")
    secret = folder.parent / "secret"
    secret.write_text("mine")
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        name = f"insula-test-{os.getpid()}-{holder.pid}"
        abstract.bind(f"\0{name}")
        abstract.listen()
        words = [f"disk={secret}", f"record={secret}", f"folder={folder.parent}", f"pid={os.getpid()}"]
        words += [f"tcp={tcp.getsockname()[1]}", f"abstract={name}"]
        reading, writing = os.pipe()
        program = Program((f"{ROOM}/probe", *words), uid=_uid(holder), rights=rights, folder=folder)
        start_server(holder, "probe", program, writing)
        os.close(writing)
        with open(reading, "rb") as said:
            lines = [line.split("\t") for line in said.read().decode().splitlines()]
    found = {line[0]: line[1] for line in lines}
    assert found.pop("done") == "blocked"
    assert len(found) > 80
    return found


@pytest.mark.parametrize("rights", [0, SERVER_RIGHTS], ids=["ports", "names"])
def test_nothing_gets_out(holder: Holder, tmp_path: Path, rights: int) -> None:
    left = {name for name, result in _tried(holder, tmp_path / "shown", rights).items() if result != "blocked"}
    expected = _ITS_WORK | (_A_USERS if _uid(holder) is None else set())
    assert left <= expected, left - expected
    assert rights or "have a raw socket" not in left


def test_it_is_alone_and_bounded(holder: Holder) -> None:
    start_server(holder, "sleeper", Program(("/bin/sleep", "1000"), uid=_uid(holder), rights=0))
    (pid,) = [pid for pid in _below(_parent(holder.pid)) if _name(pid) == "sleep"]
    mine = [kind for kind in _NAMESPACES if os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")]
    assert mine == [*_NAMESPACES]
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    assert (status["NoNewPrivs"], status["Seccomp"], int(status["CapEff"], 16)) == ("1", "2", 0)
    assert status["NSpid"].split()[-1] == "1"
    limits = {line[:26].strip(): line[47:68].strip() for line in Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]}
    assert {limits["Max core file size"], limits["Max locked memory"], limits["Max msgqueue size"]} == {"0"}
    assert int(limits["Max file size"]) <= 1 << 24
    holder.stop("sleeper")
    assert not Path(f"/proc/{pid}").exists()
    assert holder.children() == set()


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _below(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


@pytest.mark.parametrize("who", ["root", "user"])
def test_names_are_asked_of_the_host_from_such_a_room(tmp_path: Path, who: str) -> None:
    """Also by an ordinary user, whose room outside the fabric takes a user namespace of its own."""
    module, environment = [sys.executable, "-m", "tests.security.relayed"], cli_environment(tmp_path)
    argv = [*module, str(tmp_path)]
    if who == "user":
        argv = with_a_home(tmp_path / "user", [*module, "/mnt"])
        environment |= {"HOME": "/mnt", "XDG_CACHE_HOME": "/mnt/cache"}
    done = subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True, check=False, timeout=170)
    assert done.returncode == 0, done.stderr.decode()
    seen = json.loads(done.stdout)
    assert (seen["asked"], seen["answer"]) == ("who", "you")
    assert (seen["Seccomp"], seen["NoNewPrivs"], int(seen["CapEff"], 16), seen["NSpid"].split()[-1]) == ("2", "1", 0, "1")
