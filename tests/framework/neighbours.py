"""Machines that nothing divides fairly between: all in one control group of the test's own, with one slow disk, as on a host
where Insula can make no groups. `python -m tests.framework.neighbours WORDS` is `insula WORDS` with disks that go past the page
cache: the kernel's throttle of a group (version 1) holds for such alone."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from tests.framework.doors import cli_environment
from tests.framework.project import ROOT

SLOW: Final = 60 << 20  # bytes a second that the disk gives all of them together
_TREES: Final = [Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/blkio")]
_HERE: Final = Path(__file__).parent
# Arguments: the groups to be in, "--", the command.
_INSIDE: Final = """
set -e
while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs"; shift; done
shift
exec unshare --mount --propagation private sh -c 'umount -R -l /sys/fs/cgroup; exec "$@"' sh "$@"
"""
_LOADS: Final = {
    "spin": "while :; do :; done",
    "breathe": "while :; do n=0; while [ $n -lt 3000 ]; do n=$((n+1)); done; sleep 0.2; done",
    "read": "while :; do dd if=/root/big of=/dev/null bs=4k count=25 iflag=direct; done",  # some 2000 a second
    "sip": "while :; do dd if=/root/big of=/dev/null bs=4k count=20 iflag=direct; sleep 0.1; done",
    "gulp": "while :; do dd if=/root/big of=/dev/null bs=1M iflag=direct; done",
    "flood": "exec /root/flood {peer} 1400",
    "ping": "exec ping -i 0.2 {peer}",
}


class Crowd:
    """``names`` are its machines. Loads are begun in a guest and end together."""

    def __init__(self, home: Path, names: Sequence[str], groups: Sequence[Path]) -> None:
        self.home, self.names = home, names
        self._groups = [os.fspath(group) for group in groups]

    def start(self, image: str, flood: Path) -> None:
        for name in self.names:
            shape = ("--cpus", "4", "--memory", "128M", "--pin", _two_cpus())
            self.insula("run", "--name", name, "-q", "-d", "--cold", *shape, image)
            self.insula("copy", "-q", str(flood), f"{name}:/root/flood")
            self.guest(
                name, "dd if=/dev/urandom of=/root/big bs=1M count=32 2>/dev/null; sync; echo 3 > /proc/sys/vm/drop_caches"
            )

    def insula(self, *words: str) -> bytes:
        done = subprocess.run(self._argv(words), **self._options(), capture_output=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr.decode()
        said: bytes = done.stdout
        return said

    def guest(self, name: str, script: str) -> bytes:
        return self.insula("exec", name, "--", "sh", "-c", script)

    def load(self, name: str, kind: str, count: int = 1, peer: str = "") -> None:
        script = _LOADS[kind].format(peer=self.address(peer) if peer else "")
        each = f"setsid sh -c '{script}' >/dev/null 2>&1 </dev/null & echo $! >> /tmp/loads;"
        self.guest(name, each * count)

    def calm(self) -> None:
        for name in self.names:
            self.guest(name, "for pid in $(cat /tmp/loads 2>/dev/null); do kill -9 -$pid; done 2>/dev/null; rm -f /tmp/loads")

    def address(self, name: str) -> str:
        (shown,) = json.loads(self.insula("show", "--json", name))
        return next(str(nic["ipv4"]) for nic in shown["nics"])

    def usage(self, interval: float = 0.1) -> dict[str, dict[str, Any]]:
        told = json.loads(self.insula("stats", "--json", "--interval", str(interval)))
        return {machine["name"]: machine for machine in told["machines"]}

    @contextlib.contextmanager
    def guard(self, *words: str) -> Iterator[Iterator[dict[str, Any]]]:
        """Looks of `insula guard`, as it takes them; ended in order by the exit."""
        with subprocess.Popen(self._argv(("guard", "--json", *words)), **self._options(), stdout=subprocess.PIPE) as process:
            assert process.stdout
            try:
                yield (json.loads(line) for line in process.stdout)
            finally:
                process.terminate()
                process.communicate()

    def delete(self) -> None:
        for name in self.names:
            subprocess.run(self._argv(("delete", "--force", name)), **self._options(), capture_output=True, check=False)

    def _argv(self, words: Sequence[str]) -> list[str]:
        python = [sys.executable, "-B", "-m", "tests.framework.neighbours"]
        return ["sh", "-c", _INSIDE, "sh", *self._groups, "--", *python, *words]

    def _options(self) -> dict[str, Any]:
        environment = cli_environment(self.home)
        return {"env": environment | {"PYTHONPATH": f"{environment['PYTHONPATH']}:{ROOT}"}, "stdin": subprocess.DEVNULL}


def _two_cpus() -> str:
    """So that four CPUs of a guest are more than there are, on any host."""
    return ",".join(str(cpu) for cpu in sorted(os.sched_getaffinity(0))[:2])


@contextlib.contextmanager
def crowd(home: Path, image: str, folder: Path, count: int = 3) -> Iterator[Crowd]:
    if not all((tree / "cgroup.procs").exists() for tree in _TREES):
        pytest.skip("the slow disk is made by control groups of version 1")
    flood = folder / "flood"
    subprocess.run(["musl-gcc", "-Wall", "-Wextra", "-Werror", "-Os", "-static", "-o", flood, _HERE / "flood.c"], check=True)
    token = f"crowd-{os.urandom(4).hex()}"
    groups = [tree / token for tree in _TREES]
    found = Crowd(home, [f"n{each}-{token[-4:]}" for each in range(count)], groups)
    try:
        for group in groups:
            group.mkdir()
        device = os.stat(home).st_dev
        (groups[1] / "blkio.throttle.read_bps_device").write_text(f"{os.major(device)}:{os.minor(device)} {SLOW}")
        found.start(image, flood)
        yield found
    finally:
        found.delete()
        for group in groups:
            _remove(group)


def _remove(group: Path) -> None:
    """As soon as the last that ended has left it; whoever outlives the machines, such as a network's servers, leaves it now."""
    while group.exists():
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (group.parent / "cgroup.procs").write_text(pid)
        with contextlib.suppress(OSError):
            group.rmdir()


def _go_past_the_page_cache() -> None:
    from insula.engines.qemu import board, descriptors

    chain, files = vars(board)["_chain"], vars(descriptors)["_files"]

    def direct_chain(disk: Any, opened: Any, nodes: list[dict[str, Any]]) -> None:
        chain(disk, opened, nodes)
        for node in nodes:
            if node["node-name"].startswith(f"{disk.name}-"):
                node["cache"] = {"direct": True, "no-flush": False}

    def direct_files(plan: Any) -> dict[str, tuple[Path, int]]:
        found = files(plan)
        return {key: (path, flags | (os.O_DIRECT if key.startswith("disk") else 0)) for key, (path, flags) in found.items()}

    vars(board)["_chain"] = direct_chain
    vars(descriptors)["_files"] = direct_files


if __name__ == "__main__":
    from insula.cli.main import main

    _go_past_the_page_cache()
    main()
