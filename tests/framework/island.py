"""A host of its own for real machines: a network and a `/run` that nobody else has, on which root and ordinary users work.

What happens to it (everything killed at once, switches set back, programs and devices missing) happens to nobody else. The
machines' images are those of this run, had by hard links.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from insula.host.native import native_digest, native_path
from tests.framework.ordinary import REACHABLE, needed
from tests.framework.project import ROOT

# Arguments: a folder, then those of REACHABLE. What is typed to it is nothing; it ends when nobody can.
_HOST = (
    REACHABLE
    + r"""
set -e
folder=$1; shift
mkdir -p "$folder/cgroup" "$folder/dev" "$folder/ours"
mount --rbind /sys/fs/cgroup "$folder/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$folder/cgroup" /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs "$folder/dev"
mknod -m 666 "$folder/dev/tun" c 10 200
mount --bind "$folder/dev/tun" /dev/net/tun
mount --bind "$folder" /mnt
echo 0 > /proc/sys/net/ipv4/ip_forward
echo 0 > /proc/sys/net/ipv6/conf/all/forwarding
ip link set lo up
reachable "$folder/ours" "$@"
echo made
exec cat
"""
)

_LINKS = "link add name eth0 netns /proc/{}/ns/net type veth peer name eth0 netns /proc/{}/ns/net\n"
_HERE = "link set eth0 addrgenmode none up\naddress add 203.0.113.1/24 dev eth0\nroute add default via 203.0.113.9\n"
_FAR = "link set eth0 addrgenmode none up\naddress add 203.0.113.9/24 dev eth0\n"

_SPACES = (("net", "net"), ("mount", "mnt"), ("pid", "pid"))
_SWITCHES = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")


class User:
    """Somebody with a home on an island, who is root if ``uid`` is 0. ``home`` is his state as he sees it, ``seen`` as we do.

    ``within``: the first words of what is done for him, as root: a command that does another one.
    """

    def __init__(self, island: Island, seen: Path, uid: int) -> None:
        self.island, self.uid = island, uid
        self.within: list[str] = []
        self._folder = Path("/mnt") / seen.name
        self.home, self.seen = self._folder / "insula", seen / "insula"

    def words(self, *argv: str) -> list[str]:
        """A command as one that this user does on the island."""
        environment = ["/usr/bin/env", "-i", f"PATH={self.island.path}", "LC_ALL=C.UTF-8", f"HOME={self._folder}"]
        environment += [f"INSULA_HOME={self.home}", f"PYTHONPATH={ROOT}/src:{ROOT}", f"TMPDIR={self._folder}"]
        environment += [f"{name}={value}" for name, value in os.environ.items() if name.startswith("INSULA_TEST")]
        who = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups", "--"] if self.uid else []
        return [*self.island.enter(), *self.within, *who, *environment, *argv]

    def do(self, *argv: str, check: bool = True, data: str = "", timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.words(*argv), input=data, capture_output=True, text=True, check=False, timeout=timeout, cwd="/"
        )
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done

    def insula(self, *argv: str, check: bool = True, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
        """A command line of Insula's."""
        return self.do(sys.executable, "-B", "-m", "insula", *argv, check=check, timeout=timeout)

    def refused(self, *argv: str) -> str:
        """What Insula says when it refuses a command."""
        done = self.insula(*argv, check=False)
        assert done.returncode != 0, done.stdout
        assert "Traceback" not in done.stderr
        return done.stderr

    def told(self, *argv: str) -> Any:
        """What Insula tells as JSON."""
        return json.loads(self.insula(*argv, "--json").stdout)


class Island:
    path = "/usr/sbin:/usr/bin:/sbin:/bin"

    def __init__(self, folder: Path, images: Path, far: int) -> None:
        self._folder, self._images, self._far = folder, images, far
        self._life = contextlib.ExitStack()
        self._pid = 0

    def boot(self) -> None:
        """All that is on it is new but for files."""
        words = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
        words += ["sh", "-c", _HOST, "sh", os.fspath(self._folder), *needed()]
        first = self._life.enter_context(_held(words))
        self._pid = int(Path(f"/proc/{first}/task/{first}/children").read_text())
        subprocess.run(["ip", "-batch", "-"], input=_LINKS.format(self._pid, self._far), check=True, text=True)
        for end, lines in ((self._pid, _HERE), (self._far, _FAR)):
            subprocess.run(["nsenter", f"--net=/proc/{end}/ns/net", "ip", "-batch", "-"], input=lines, check=True, text=True)

    def end(self) -> None:
        """All processes on it end at once, as when the power fails."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            # Now, not when the kernel gets to it: the next life has links of the same names.
            words = ["nsenter", f"--net=/proc/{self._far}/ns/net", "ip", "link", "delete", "eth0"]
            subprocess.run(words, check=False, capture_output=True)
            self._pid = 0
        self._life.close()

    def reboot(self) -> None:
        self.end()
        self.boot()

    def enter(self) -> list[str]:
        """The first words of a command that is done on it."""
        return ["nsenter", *[f"--{kind}=/proc/{self._pid}/ns/{file}" for kind, file in _SPACES], "--"]

    def root(self, *argv: str) -> str:
        return subprocess.run([*self.enter(), *argv], capture_output=True, text=True, check=True, timeout=60).stdout

    @contextlib.contextmanager
    def without(self, *lost: str) -> Iterator[None]:
        """While this lasts there is nothing on it at these paths that could be used: programs, and folders of devices."""
        for path in lost:
            empty = ["-t", "tmpfs", "tmpfs"] if Path(path).is_dir() else ["--bind", "/dev/null"]
            self.root("mount", *empty, path)
        try:
            yield
        finally:
            for path in lost:
                self.root("umount", path)

    def seen(self) -> list[str]:
        """What there is on it that machines' networks are made of, or change."""
        inside = ["nsenter", f"--net=/proc/{self._pid}/ns/net", "--"]  # with programs of this host, whatever is missing there
        found = []
        for words in (["ip", "-brief", "link"], ["ip", "route", "show"], ["nft", "list", "tables"]):
            lines = subprocess.run([*inside, *words], capture_output=True, text=True, check=True).stdout.splitlines()
            found += [f"{words[1]} {' '.join(line.partition('@')[0].split()[:2])}" for line in lines]
        found += [f"switch {name} {self.root('cat', f'/proc/sys/net/{name}').strip()}" for name in _SWITCHES]
        found += [f"file {name}" for name in self.root("find", "/run", "-type", "f").split()]
        return sorted(found)

    def user(self, name: str, uid: int) -> User:
        """A user with a home that has this run's images, and the program that runs machines."""
        folder = self._folder / name
        shutil.copytree(
            self._images, folder / "insula" / "images", symlinks=True, copy_function=os.link if uid == 0 else shutil.copy2
        )
        program = native_path("insula-keeper")
        place = folder / ".cache" / "insula" / f"native-{native_digest('keeper')}" / program.parent.name
        place.mkdir(parents=True)
        shutil.copy(program, place)
        subprocess.run(["chown", "-R", "-h", f"{uid}:{uid}", folder], check=True)
        return User(self, folder, uid)


@contextlib.contextmanager
def island(folder: Path, images: Path) -> Iterator[Island]:
    """``folder`` is empty, ``images`` a home's. Needs root."""
    folder.chmod(0o755)
    with _held(["unshare", "--net", "sh", "-c", "ip link set lo up; echo made; exec cat"]) as far:
        made = Island(folder, images, far)
        try:
            made.boot()
            yield made
        finally:
            made.end()


@contextlib.contextmanager
def _held(words: list[str]) -> Iterator[int]:
    """A process that says that it is made, and stays until its input ends; its pid."""
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "made\n"
        try:
            yield process.pid
        finally:
            process.stdin.close()
