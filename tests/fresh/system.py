"""Fresh Debian systems: a minimal tree made in ten seconds, with a clone of the project in it."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.framework.project import ROOT

CLONE = "/srv/insula"
USER = "anna"
_ENTER = Path(__file__).with_name("enter.py")
_BY_HAND = re.compile(r"run as root: (.*)", re.DOTALL)


@dataclass(frozen=True)
class Said:
    """What a command inside answered."""

    status: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class FreshSystem:
    """A Debian as its installer leaves it, or less: no Python, no sudo, no git, no QEMU. ``user`` works in it."""

    root: Path
    user: str

    def run(self, *words: str, user: str | None = None, timeout: float = 3000) -> Said:
        """Run a command in the clone, as if at a terminal that nobody watches. After ``timeout`` seconds all of it is killed."""
        namespaces = ["--mount", "--pid", "--fork", "--kill-child", "--ipc", "--uts", "--propagation", "private"]
        enter = [sys.executable, "-I", str(_ENTER), str(self.root), user or self.user]
        inside = ["sh", "-c", f'cd {CLONE} && exec "$@"', "sh", *words]
        try:
            done = subprocess.run(
                ["unshare", *namespaces, "--", *enter, *inside],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            return Said(124, _text(late.stdout), _text(late.stderr) + f"\n(ended after {timeout:g} s)")
        return Said(done.returncode, _text(done.stdout), _text(done.stderr))

    def run_with_an_administrator(self, *words: str, most: int = 3, timeout: float = 3000) -> Said:
        """Run a command; whatever it asks root to do is done exactly as it says, and the command is repeated."""
        for _ in range(most):
            said = self.run(*words, timeout=timeout)
            wanted = _BY_HAND.search(said.stderr)
            if said.status == 0 or wanted is None:
                return said
            done = self.run("sh", "-c", wanted[1].strip(), user="root")
            assert done.status == 0, f"the command that Insula told to run failed:\n{wanted[1]}\n{done.stdout}{done.stderr}"
        return self.run(*words, timeout=timeout)

    def written_into_the_clone(self) -> str:
        """What git finds in the clone that was not in it; empty when all is well."""
        words = ["git", "-c", "safe.directory=*", "-C", f"{self.root}{CLONE}", "status", "--porcelain", "--ignored"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def make_system(suite: str, user: str, folder: Path) -> FreshSystem:
    """A system of that release with what is committed here cloned into it. Needs root and mmdebstrap."""
    root = folder / f"{suite}-{user}"
    subprocess.run(["mmdebstrap", "--quiet", "--variant=apt", "--mode=root", suite, root], check=True)
    subprocess.run(["git", "-c", "safe.directory=*", "clone", "--quiet", "--no-hardlinks", ROOT, f"{root}{CLONE}"], check=True)
    if user != "root":
        _add_user(root, user)
    return FreshSystem(root, user)


def _text(said: bytes | None) -> str:
    return (said or b"").decode(errors="replace")


def _add_user(root: Path, user: str) -> None:
    """As adduser(8) does, which a tree this small lacks."""
    for name, line in (
        ("passwd", f"{user}:x:1000:1000::/home/{user}:/bin/sh"),
        ("group", f"{user}:x:1000:"),
        ("shadow", f"{user}:!:20000:0:99999:7:::"),
        ("subuid", f"{user}:100000:65536"),
        ("subgid", f"{user}:100000:65536"),
    ):
        with (root / "etc" / name).open("a") as stream:
            stream.write(f"{line}\n")
    home = root / "home" / user
    home.mkdir(mode=0o700)
    subprocess.run(["chown", "1000:1000", home], check=True)
