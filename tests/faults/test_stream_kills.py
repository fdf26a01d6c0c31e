"""`kill -9` and Ctrl-C of commands whose work is a stream: the guest and this computer are as if they had never been begun."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from insula.images.catalogue import find, list_images, sweep
from insula.images.verify import verify
from insula.store import names
from insula.store.names import Home
from tests.framework.doors import cli_command, cli_environment, popen_cli, run_cli

pytestmark = pytest.mark.limit(120)

BOTH = pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
_PATIENCE = 20.0  # seconds for what ends by itself
# What has a command line is no thread of the kernel's. The shell that runs this is always the same.
_PROCESSES = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done 2>/dev/null"
_SCRAPS = "find / -xdev \\( -name '.insula-*' -o -name '*.insula-new' \\) -print"


def _in_guest(home: Path, machine: str, script: str) -> list[str]:
    done = run_cli(home, "exec", machine, "--", "sh", "-c", script, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return sorted(line for line in done.stdout.decode().splitlines() if line.strip())


def _until(true: Callable[[], bool], what: str) -> None:
    """Look until it is so: the guest has nobody who would tell us."""
    deadline = time.monotonic() + _PATIENCE
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)  # between two looks at the condition


@pytest.fixture
def undisturbed(home: Path, shared: str, tmp_path: Path) -> Iterator[None]:
    """Afterwards the next command works, and neither the guest nor this computer holds anything of the one that died."""
    before = _in_guest(home, shared, _PROCESSES)
    yield
    _until(lambda: _in_guest(home, shared, _PROCESSES) == before, f"processes hang in the guest: not {before}")
    _until(lambda: _in_guest(home, shared, _SCRAPS) == [], "scraps are left in the guest")
    assert [path for path in (*tmp_path.rglob("*"), *home.rglob("*")) if path.name.startswith(".insula-")] == []


def _end(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send the signal; the command must die of it at once, and say no more than a line."""
    child.send_signal(number)
    child.wait(_PATIENCE)
    assert child.returncode in (-number, 128 + number)


def _read_until(descriptor: int, wanted: bytes) -> bytes:
    seen = b""
    deadline = time.monotonic() + _PATIENCE
    while wanted not in seen:
        assert select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0], seen
        came = os.read(descriptor, 65536)
        assert came, f"it ended before it said {wanted!r}: {seen!r}"
        seen += came
    return seen


@contextlib.contextmanager
def _saying(home: Path, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A command whose input does not end, and where it says something."""
    with popen_cli(home, *words, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            yield child, child.stdout.fileno()
        finally:
            child.kill()


@BOTH
@pytest.mark.parametrize("script", ["echo ready; sleep 9871", "echo ready; yes", "echo ready; cat /dev/zero | cat"])
def test_exec(home: Path, shared: str, undisturbed: None, number: signal.Signals, script: str) -> None:
    with _saying(home, "exec", shared, "--", "sh", "-c", script) as (child, output):
        _read_until(output, b"ready\n")
        child.send_signal(number)
        if number == signal.SIGINT:  # it goes to the guest, whose program dies of it
            while os.read(output, 1 << 20):
                pass
        assert child.wait(_PATIENCE) in (-number, 128 + number)


@BOTH
def test_exec_that_is_being_fed(home: Path, shared: str, undisturbed: None, number: signal.Signals) -> None:
    with open("/dev/zero", "rb") as endless, popen_cli(
        home, "exec", "-i", shared, "--", "sh", "-c", "echo ready; cat > /dev/null", stdin=endless, stderr=subprocess.PIPE
    ) as child:  # fmt: skip
        assert child.stdout is not None
        _read_until(child.stdout.fileno(), b"ready\n")
        _end(child, number)


@contextlib.contextmanager
def _at_a_terminal(home: Path, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A command whose terminal is ours to type on."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(cli_command(*words), env=cli_environment(home), stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        yield child, ours
    finally:
        child.kill()
        child.wait()
        os.close(ours)


@BOTH
def test_shell(home: Path, shared: str, undisturbed: None, number: signal.Signals) -> None:
    with _at_a_terminal(home, "shell", shared) as (child, terminal):
        # Said by what is to be interrupted: the shell itself would not mind.
        os.write(terminal, b"sh -c \"echo rea''dy; exec sleep 9872\"\r")
        _read_until(terminal, b"ready\r\n")
        if number == signal.SIGKILL:
            _end(child, number)
            return
        os.write(terminal, b"\x03")  # typed, it is the guest's: it ends the program, not the shell
        os.write(terminal, b"echo al''ive; exit 7\r")
        _read_until(terminal, b"alive\r\n")
        assert child.wait(_PATIENCE) == 7


@BOTH
@pytest.mark.parametrize("words", [["console"], ["logs", "-f"]], ids=["console", "logs"])
def test_what_the_console_prints(home: Path, shared: str, undisturbed: None, number: signal.Signals, words: list[str]) -> None:
    with _saying(home, *words, shared) as (child, output):
        _in_guest(home, shared, "echo a-mark > /dev/console")
        _read_until(output, b"a-mark")
        _end(child, number)


@BOTH
def test_events(home: Path, shared: str, undisturbed: None, number: signal.Signals) -> None:
    with _saying(home, "events", "-f", shared) as (child, output):
        _read_until(output, b'"started"')
        _end(child, number)


@BOTH
def test_copy_in(home: Path, shared: str, undisturbed: None, tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "big").touch()
    os.truncate(tmp_path / "big", 8 << 30)
    with _saying(home, "copy", str(tmp_path / "big"), f"{shared}:/root/big") as (child, _):
        _until(lambda: _in_guest(home, shared, _SCRAPS) != [], "the copy never began")
        _end(child, number)
    assert "/root/big" not in _in_guest(home, shared, "ls -d /root/* || true")


@BOTH
def test_copy_out(home: Path, shared: str, undisturbed: None, tmp_path: Path, number: signal.Signals) -> None:
    _in_guest(home, shared, "mkdir -p /root/tree && echo small > /root/tree/a && truncate -s 2G /root/tree/b")
    with _saying(home, "copy", f"{shared}:/root/tree", str(tmp_path / "out")) as (child, _):
        _until(lambda: _holds_a_large_file(child.pid), "the copy never began")
        _end(child, number)
    assert [path.name for path in (tmp_path / "out").iterdir()] in ([], ["a"]), "what is not whole has no name"
    _in_guest(home, shared, "rm -r /root/tree")


def _holds_a_large_file(pid: int) -> bool:
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if entry.is_file() and entry.stat().st_size > 1 << 20 and entry.stat().st_nlink == 0:
                return True
    return False


_DELETER = """
import os, signal, sys
from insula.images import catalogue
from insula.cli.main import main
real, number = getattr(catalogue, sys.argv[1]), int(sys.argv[2])
def dying(*args, **kwargs):
    if sys.argv[3] == "after":
        real(*args, **kwargs)
    os.kill(os.getpid(), number)
    return real(*args, **kwargs)
setattr(catalogue, sys.argv[1], dying)
sys.argv[1:] = ["image", "delete", "-q", "tiny"]
main()
"""


@BOTH
@pytest.mark.parametrize(
    ("step", "when"),
    [
        ("write_names", "before"),
        ("write_names", "after"),
        ("fsync_folder", "before"),
        ("forget", "before"),
        ("remove_tree", "before"),
    ],
)
def test_image_delete(home: Path, tiny: str, tmp_path: Path, number: signal.Signals, step: str, when: str) -> None:
    """Killed at a step, the image is whole or not there; the next delete finishes what is left."""
    own = Home(tmp_path / "home")
    shutil.copytree(home / "images", own.images)
    died = subprocess.run(
        [sys.executable, "-c", _DELETER, step, str(int(number)), when],
        env=cli_environment(own.root), stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert died.returncode in (-number, 128 + number), died.stderr.decode()
    assert b"Traceback" not in died.stderr
    for entry in list_images(own):
        assert entry.image is not None, entry.error
        verify(own, entry.image)
    listed = run_cli(own.root, "image", "list", "--json")
    assert listed.returncode == 0, listed.stderr.decode()
    for digest in [entry.digest for entry in list_images(own)] or ["nothing-is-left"]:
        run_cli(own.root, "image", "delete", digest)
    assert find(own, tiny) is None
    sweep(own)
    assert set(os.listdir(own.images)) <= {names.IMAGES_LOCK, names.IMAGE_NAMES}
