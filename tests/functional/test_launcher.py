"""``./insula``: becomes the command at once when its environment is there, makes it when not, and says what it needs.

The launcher runs in a copy of its own with a Python, an apt-get and a sudo that write down what they are told. What the
real ones do is tried on fresh systems (``tests/fresh``).
"""

from __future__ import annotations

import os
import pty
import shutil
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.framework.project import ROOT

_PYTHON = """#!/bin/sh
case "$*" in
*"import os, sys"*) echo "$0" ;;
*"import ensurepip, venv"*) test -e "{folder}/has-venv" ;;
*"-VV"*) cat "{folder}/version" ;;
*"-m venv"*)
    for last; do :; done
    echo venv >>{folder}/log
    mkdir -p "$last/bin"
    cp "$0" "$last/bin/python"
    ;;
*"-m pip"*) echo "pip $*" >>{folder}/log; test ! -e {folder}/pip-fails ;;
*) printf '%s\\n' "$@"; exit 7 ;;
esac
"""
_SUDO = '#!/bin/sh\necho "sudo $*" >>{folder}/log\nexec "$@"\n'
_APT = '#!/bin/sh\necho "apt-get $*" >>{folder}/log\ncase "$*" in *install*) touch "{folder}/has-venv" ;; esac\n'
_ID = "#!/bin/sh\necho 1000\n"  # an ordinary user, whoever runs the tests


class Bench:
    """A clone of the launcher, a cache of its own, and the programs it finds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clone = folder / "a clone"
        self.programs = folder / "bin"
        self.cache = folder / "cache"
        self.clone.mkdir()
        self.programs.mkdir()
        shutil.copy(ROOT / "insula", self.clone)
        shutil.copytree(ROOT / "packaging", self.clone / "packaging")
        (self.clone / "requirements.lock").write_text("click==1\n")
        (folder / "version").write_text("Python 3.11.2\n")
        (folder / "has-venv").touch()
        for name in ("cmp", "rm", "mv", "cp", "mkdir", "cat", "uname", "sha256sum", "flock", "readlink", "sh", "touch"):
            (self.programs / name).symlink_to(shutil.which(name) or "/nonexistent")
        self.add("python3", _PYTHON)
        self.add("id", _ID)

    def add(self, name: str, text: str) -> None:
        path = self.programs / name
        path.write_text(text.replace("{folder}", str(self.folder)))
        path.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": str(self.programs), "HOME": str(self.folder), "XDG_CACHE_HOME": str(self.cache)}

    def run(self, *words: str, command: str = "./insula", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [command, *words], cwd=cwd or self.clone, env=self.environment, capture_output=True, text=True, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def log(self) -> list[str]:
        path = self.folder / "log"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_the_environment_is_made_once_and_the_command_becomes_python(bench: Bench) -> None:
    first = bench.run("run", "debian", "--", "echo", "a  b")
    assert first.returncode == 7, first.stderr
    expected = ["-I", "-X", f"pycache_prefix={bench.cache}/insula/pycache", f"{bench.clone}/./src/insula/__main__.py"]
    assert first.stdout.splitlines() == [*expected, "run", "debian", "--", "echo", "a  b"]
    made = bench.log()
    assert [line.split()[0] for line in made] == ["venv", "pip"]
    assert "--require-hashes --only-binary :all: --no-deps" in made[1]
    second = bench.run("list")
    assert (second.returncode, second.stderr) == (7, "")
    assert bench.log() == made


def test_it_works_from_anywhere_and_through_links(bench: Bench) -> None:
    bench.run("list")
    made = bench.log()
    (bench.folder / "link").symlink_to(bench.clone / "insula")
    for command in (str(bench.clone / "insula"), "a clone/insula", "./link"):
        done = bench.run("list", command=command, cwd=bench.folder)
        assert done.returncode == 7, done.stderr
        assert Path(done.stdout.splitlines()[3]).resolve() == bench.clone / "src/insula/__main__.py"
    assert bench.log() == made


def test_another_lock_file_or_python_gets_another_environment(bench: Bench) -> None:
    bench.run("list")
    (bench.clone / "requirements.lock").write_text("click==2\n")
    bench.run("list")
    assert bench.log().count("venv") == 2
    shutil.rmtree(bench.cache)
    (bench.folder / "version").write_text("Python 3.13.5\n")
    bench.run("list")
    assert bench.log().count("venv") == 3


def test_former_environments_are_found_again(bench: Bench) -> None:
    bench.run("list")
    (bench.clone / "requirements.lock").write_text("click==2\n")
    bench.run("list")
    (bench.clone / "requirements.lock").write_text("click==1\n")
    assert bench.run("list").returncode == 7
    assert bench.log().count("venv") == 2


def test_an_unfinished_environment_is_not_used(bench: Bench) -> None:
    (bench.folder / "pip-fails").touch()
    failed = bench.run("list")
    assert failed.returncode == 1
    assert "pip could not fetch" in failed.stderr
    assert [path.name for path in (bench.cache / "insula").iterdir()] == ["lock"]
    (bench.folder / "pip-fails").unlink()
    assert bench.run("list").returncode == 7


def test_many_at_once_make_it_once(bench: Bench) -> None:
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda _: bench.run("list"), range(6)))
    assert [one.returncode for one in done] == [7] * 6
    assert bench.log().count("venv") == 1


def test_nothing_is_written_into_the_clone(bench: Bench) -> None:
    before = sorted(bench.clone.rglob("*"))
    for path in [bench.clone, *before]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    bench.run("list")
    assert sorted(bench.clone.rglob("*")) == before


@pytest.mark.parametrize(("words", "status"), [(["list"], 1), (["run", "debian"], 125), (["--yes", "exec", "x"], 125)])
def test_without_python_the_exact_command_is_told(bench: Bench, words: list[str], status: int) -> None:
    (bench.programs / "python3").unlink()
    bench.add("apt-get", _APT)
    done = bench.run(*words)
    assert done.returncode == status
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        "insula: run as root: apt-get update -q && apt-get install -q --yes --no-install-recommends python3 python3-venv"
    )


def test_a_system_without_apt_is_told_so(bench: Bench) -> None:
    (bench.folder / "has-venv").unlink()
    done = bench.run("list")
    assert done.returncode == 1
    assert "python3-venv" in done.stderr
    assert "this is not Debian" in done.stderr


def test_nobody_at_the_terminal_means_no_sudo(bench: Bench) -> None:
    (bench.folder / "has-venv").unlink()
    bench.add("apt-get", _APT)
    bench.add("sudo", _SUDO)
    done = bench.run("list")
    assert done.returncode == 1
    assert "insula: run: sudo sh -c 'apt-get update" in done.stderr
    assert bench.log() == []


def test_yes_installs_with_sudo_and_goes_on(bench: Bench) -> None:
    (bench.folder / "has-venv").unlink()
    bench.add("apt-get", _APT)
    bench.add("sudo", _SUDO)
    done = bench.run("--yes", "list")
    assert done.returncode == 7, done.stderr
    assert [line.split()[0] for line in bench.log()] == ["sudo", "apt-get", "apt-get", "venv", "pip"]
    assert bench.log()[2] == "apt-get install -q --yes --no-install-recommends python3-venv"


def test_a_yes_for_the_guest_is_not_for_us(bench: Bench) -> None:
    (bench.folder / "has-venv").unlink()
    bench.add("apt-get", _APT)
    bench.add("sudo", _SUDO)
    assert bench.run("run", "debian", "--", "apt-get", "--yes").returncode == 125
    assert bench.log() == []


def test_root_installs_at_once(bench: Bench) -> None:
    (bench.folder / "has-venv").unlink()
    bench.add("id", "#!/bin/sh\necho 0\n")
    bench.add("apt-get", _APT)
    assert bench.run("list").returncode == 7
    assert [line.split()[0] for line in bench.log()] == ["apt-get", "apt-get", "venv", "pip"]


@pytest.mark.parametrize(("answer", "status"), [(b"y\n", 7), (b"\n", 7), (b"n\n", 1)])
def test_at_a_terminal_it_asks(bench: Bench, answer: bytes, status: int) -> None:
    (bench.folder / "has-venv").unlink()
    bench.add("apt-get", _APT)
    bench.add("sudo", _SUDO)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(bench.clone)
        os.execve("./insula", ["./insula", "list"], bench.environment)
    os.write(terminal, answer)
    said = _read_to_the_end(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status, said
    assert b"install them now with sudo? [Y/n]" in said
    assert (bench.log() != []) == (status == 7)


def _read_to_the_end(terminal: int) -> bytes:
    """All that is written to a terminal until its last user is gone, which reads as an error."""
    said = b""
    try:
        while chunk := os.read(terminal, 4096):
            said += chunk
    except OSError:
        pass
    os.close(terminal)
    return said


def test_the_usual_path_is_short(bench: Bench) -> None:
    """One fork and one exec before Python. The bound is loose, for busy hosts; bench/ measures."""
    bench.run("list")
    times = []
    for _ in range(9):
        began = time.perf_counter()
        bench.run("list")
        times.append(time.perf_counter() - began)
    assert min(times) < 0.05
