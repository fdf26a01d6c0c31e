"""`top` on a real terminal and without one. No machine need run for that."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework.doors import cli_command, cli_environment, run_cli


class Terminal:
    """`insula top` on a pty of its own."""

    def __init__(self, home: Path, *words: str) -> None:
        self._outer, self._inner = pty.openpty()
        self.resize(24, 100)
        self.before = termios.tcgetattr(self._inner)
        self.process = subprocess.Popen(
            cli_command("top", *words), env=cli_environment(home), stdin=self._inner, stdout=self._inner, stderr=self._inner,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        self.shown = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._inner, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: bytes) -> None:
        os.write(self._outer, keys)

    def wait_shown(self, words: bytes) -> None:
        """Until it shows them anew."""
        self.shown = b""
        while words not in self.shown:
            self.shown += os.read(self._outer, 65536)

    def end(self) -> int:
        """How it ended; all that it says is taken in meanwhile, so that it is not kept from ending, and once more when it has."""
        while self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)
            self._take()
        self._take()
        return self.process.returncode

    def _take(self) -> None:
        os.set_blocking(self._outer, False)
        with contextlib.suppress(BlockingIOError):
            while True:  # one read gives a page of it at most
                self.shown += os.read(self._outer, 65536)
        os.set_blocking(self._outer, True)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._inner)
        os.close(self._outer)


@pytest.fixture
def terminal(home: Path) -> Iterator[Terminal]:
    found = Terminal(home, "--interval", "0.2")
    yield found
    found.close()


def _is_left_as_it_was(terminal: Terminal) -> None:
    assert terminal.shown.endswith(b"\x1b[?25h\x1b[?1049l"), "cursor and screen are given back"
    assert termios.tcgetattr(terminal._inner) == terminal.before


@pytest.mark.parametrize("way", ["key", "ctrl-c", "term"])
def test_keys_sort_and_it_ends_in_order(terminal: Terminal, way: str) -> None:
    terminal.wait_shown(b"by cpu")
    terminal.press(b"w")
    terminal.wait_shown(b"by wait")
    terminal.press(b"xa")
    terminal.wait_shown(b"by name")
    if way == "term":
        terminal.process.send_signal(signal.SIGTERM)
    else:
        terminal.press(b"q" if way == "key" else b"\x03")
    assert terminal.end() == 0, terminal.shown
    _is_left_as_it_was(terminal)


def test_it_follows_the_terminals_size(terminal: Terminal) -> None:
    terminal.wait_shown(b"WRITE/s")
    terminal.resize(1, 11)
    while b"WRITE/s" in terminal.shown or b"running" not in terminal.shown:
        terminal.wait_shown(b"\x1b[J")
    terminal.resize(24, 100)
    terminal.wait_shown(b"WRITE/s")
    terminal.press(b"q")
    assert terminal.end() == 0


def test_without_a_terminal_it_prints_lines(home: Path) -> None:
    done = run_cli(home, "top", "--interval", "0.1", "-n", "2", "--sort", "disk")
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout
    heads = [line for line in done.stdout.splitlines() if line.startswith(b"MACHINE")]
    assert len(heads) == 2
    assert done.stdout.count(b"by disk") == 2
    assert run_cli(home, "top", "--once", "--interval", "0.1", "nobody").returncode == 1
