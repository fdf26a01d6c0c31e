"""A home on a small disk of its own that can be filled: a tmpfs in a mount namespace that only the test's commands enter."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.framework.doors import cli_command, cli_environment
from tests.framework.ordinary import AS_A_USER, REACHABLE, needed
from tests.framework.project import ROOT

_SCRIPT = 'mount -t tmpfs -o size="$2",mode=0700 small "$1" && echo mounted && exec cat'
# The same for an ordinary user: the disk lies in a folder he may walk, beside another for what he caches.
_FOR_A_USER = r"""
set -eu
size=$2 scratch=$1/ours
shift 2
reachable "$scratch" "$@"
mount -t tmpfs -o size=1g,mode=0700,uid=65534,gid=65534 tmpfs /mnt
mkdir /mnt/small
mount -t tmpfs -o size="$size",mode=0700,uid=65534,gid=65534 small /mnt/small
echo mounted
exec cat
"""
_FILLER = "filler"


@contextlib.contextmanager
def home_on_small_disk(mount_point: Path, size: str, images: Path, *, rootless: bool = False) -> Iterator[SmallDisk]:
    """A home with the images of another; its machines are deleted on the way out."""
    disk = SmallDisk(mount_point, size, rootless=rootless)
    disk.take_images(images)
    yield disk
    for name in disk.list():
        disk.insula("delete", "--force", name)
    disk.close()


class SmallDisk:
    """``home`` is the path inside the namespace, ``seen`` the same folder as it is seen from outside.

    ``rootless``: the commands are an ordinary user's, and so is the disk.
    """

    def __init__(self, mount_point: Path, size: str, *, rootless: bool = False) -> None:
        mount_point.mkdir()
        script = (
            [REACHABLE + _FOR_A_USER, "sh", str(mount_point), size, *needed()]
            if rootless
            else [_SCRIPT, "sh", str(mount_point), size]
        )
        self._rootless = rootless
        self.uid = 65534 if rootless else 0
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", *script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"mounted\n"
        mount_point = Path("/mnt/small") if rootless else mount_point
        self.home = mount_point / "home"
        self._root = Path(f"/proc/{self._holder.pid}/root") / mount_point.relative_to("/")
        self.seen = self._root / "home"

    def close(self) -> None:
        """The namespace and the disk in it go with their last process."""
        self._holder.communicate()

    def take_images(self, home: Path) -> None:
        """Copy the images of another home."""
        shutil.copytree(home / "images", self.seen / "images")
        if self._rootless:
            for path in (self.seen, *self.seen.rglob("*")):
                os.chown(path, 65534, 65534, follow_symlinks=False)

    def fill(self, leave: int = 0) -> None:
        """Fill the disk but for about ``leave`` bytes."""
        status = os.statvfs(self._root)
        more = status.f_bavail * status.f_frsize - leave
        with open(self._root / _FILLER, "ab") as stream:
            if more > 0:
                os.posix_fallocate(stream.fileno(), stream.tell(), more)

    def empty(self) -> None:
        """Take away what `fill` wrote."""
        (self._root / _FILLER).unlink()

    def _words(self, *words: str) -> list[str]:
        return [*self._enter(), *cli_command(*words)]

    def _enter(self) -> list[str]:
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", *(AS_A_USER if self._rootless else [])]

    def victim(self, verb: str, name: str, **told: str) -> tuple[int, str]:
        """Have tests.faults.victim do a request to its end, for verbs that have no command line; its status and the error's
        code."""
        done = subprocess.run(
            [*self._enter(), sys.executable, "-m", "tests.faults.victim", str(self.home), "99", verb, name],
            env=self._environment() | told | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
            capture_output=True, check=False, timeout=100,
        )  # fmt: skip
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return done.returncode, done.stderr.decode().strip()

    def _environment(self) -> dict[str, str]:
        return cli_environment(self.home) | (
            {"HOME": "/mnt", "TMPDIR": "/mnt", "PYTHONDONTWRITEBYTECODE": "1"} if self._rootless else {}
        )

    def insula(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        """Run a command line to its end."""
        return subprocess.run(
            self._words(*words),
            env=self._environment(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=100,
        )

    @contextlib.contextmanager
    def begun(self, *words: str, fed: bool = False) -> Iterator[subprocess.Popen[bytes]]:
        """A command line under way, its output on a pipe, and if it is ``fed`` its input too, and its errors; killed on the way
        out if it goes on."""
        pipe = subprocess.PIPE if fed else None
        child = subprocess.Popen(
            self._words(*words),
            env=self._environment(),
            cwd="/",
            stdin=pipe or subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=pipe,
        )
        with child:
            try:
                yield child
            finally:
                child.kill()

    def do(self, *words: str) -> bytes:
        """Run a command line that must succeed; its output."""
        done = self.insula(*words)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def refusal(self, *words: str) -> tuple[int, str]:
        """Run a command line that must fail, with --json; its status and the code of its error."""
        done = self.insula(words[0], "--json", *words[1:])
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        return done.returncode, json.loads(done.stderr.splitlines()[-1])["code"]

    def list(self) -> dict[str, dict[str, Any]]:
        return {machine["name"]: machine for machine in json.loads(self.do("list", "--json"))}
