"""A guest that has taken over its QEMU can make its own machine fail, nothing else: every verb ends in time, in clear words."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import insula
from insula.store import names
from tests.framework.doors import cli_environment, run_cli
from tests.framework.project import ROOT

pytestmark = [pytest.mark.root, pytest.mark.limit(900)]

_SLOW = ("yes", "mute", "garbage", "deep", "long", "flood", "refuses", "claims", "dies")
_MANNERS = ["shapes", *(pytest.param(manner, marks=pytest.mark.full) for manner in _SLOW)]
# The longest that is granted to any answer of QEMU's is a minute; a verb may ask more than once before it gives up.
_PATIENCE = 240.0
_SECRET = "a secret of the host, 5d41402abc4b2a76"


def _taken_over(home: Path, tiny: str, name: str, manner: str, secret: Path) -> None:
    insula.connect(home).create(tiny, name=name, memory="128M", network="none")
    subprocess.run(
        [sys.executable, "-m", "tests.security.taken_over", str(home), name, manner, str(secret)],
        env=cli_environment(home), cwd=ROOT, check=True, timeout=100,
    )  # fmt: skip


def _fingerprint(folder: Path) -> dict[str, tuple[int, str]]:
    """Mode and contents of all below."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    return {str(path): (path.stat().st_mode, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}


def _bounded(home: Path, *words: str) -> int:
    """Exit code of a command that must end by itself, and with words of ours alone when it fails."""
    done = run_cli(home, *words, timeout=_PATIENCE)
    said = done.stdout + done.stderr
    assert b"Traceback" not in said, said.decode()
    assert b"bug in Insula" not in said, said.decode()
    assert b"\x1b" not in said or words[0] == "logs"  # into a pipe it passes what there is
    if done.returncode and "--json" in words:
        assert json.loads(done.stderr.splitlines()[-1])["code"]
    return done.returncode


@pytest.mark.parametrize("manner", _MANNERS)
def test_every_verb_ends_and_nothing_else_is_harmed(home: Path, tiny: str, name: str, manner: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(_SECRET)
    bystander = insula.connect(home).create(tiny, name=f"{name}-by", memory="128M", network="none")
    others = [home / "machines" / bystander.name, home / "images"]
    before = [_fingerprint(each) for each in others]
    try:
        _taken_over(home, tiny, name, manner, secret)
        for words in (
            ("show", "--json", name), ("show", "--security", "--json", name), ("logs", name), ("events", name), ("stats", name),
            ("guard", "--once", "--interval", "0.1", name),
            ("exec", "--json", name, "--", "true"), ("copy", "--json", f"{name}:/etc", str(tmp_path)),
            ("limit", "--json", "--memory", "256M", name), ("limit", "--json", "--cpus", "2", "--memory", "100M", name),
            ("pause", "--json", name), ("resume", "--json", name),
            ("snapshot", "create", "--json", f"{name}@on"), ("fork", "--json", "--name", f"{name}-f", name),
            ("network", "attach", "--json", "nat", name), ("network", "link", "--json", name, "down"),
            ("network", "detach", "--json", "nat", name), ("suspend", "--json", name),
            ("restart", "--json", name, "--timeout", "1"),
        ):  # fmt: skip
            _bounded(home, *words)
        assert _bounded(home, "stop", "--timeout", "1", name) == 0
        assert _bounded(home, "list") == 0
        assert [_fingerprint(each) for each in others] == before
    finally:
        run_cli(home, "delete", "--force", f"{name}-f")
        bystander.delete()
    assert _bounded(home, "delete", "--force", name) == 0


@pytest.mark.full
def test_a_disk_that_says_it_rests_on_a_file_of_the_host_shows_nothing_of_it(
    home: Path, tiny: str, name: str, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(_SECRET * 20000)
    _taken_over(home, tiny, name, "claims", secret)
    assert _bounded(home, "stop", "--force", name) == 0
    head = home / "machines" / name / names.DISKS / "root-0.qcow2"
    assert os.fspath(secret).encode() in head.read_bytes()[:4096], "it was not spoilt"
    made = tmp_path / "exported"
    _bounded(home, "snapshot", "create", f"{name}@off")
    _bounded(home, "clone", "--full", name, f"{name}-full")
    _bounded(home, "snapshot", "export", f"{name}@off", str(made))
    insula.connect(home).get(name).start()
    script = "head -c 4194304 /dev/vda > /tmp/disk; wc -c < /tmp/disk; grep -c 5d41402abc4b2a76 /tmp/disk"
    found = insula.connect(home).get(name).exec("sh", "-c", script)
    run_cli(home, "delete", "--force", f"{name}-full", name)
    assert found.stdout == "4194304\n0\n", found
    assert _SECRET.encode() not in made.read_bytes()
