"""More connections than a keeper serves: who comes is told so at once, and the machine can still be ended."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import insula
from insula.errors import GuestError
from insula.guest.link import Link, open_link
from insula.store import names
from tests.framework.doors import run_cli

pytestmark = [pytest.mark.guest, pytest.mark.limit(120)]

_SERVED = 64
_PATIENCE = 60.0  # seconds for a keeper on a busy host


@contextlib.contextmanager
def _crowd(home: Path, name: str) -> Iterator[list[Link]]:
    """All the connections the keeper serves, each known to be served."""
    with contextlib.ExitStack() as stack:
        links: list[Link] = []
        while len(links) < _SERVED:
            with contextlib.ExitStack() as opened:
                link = opened.enter_context(open_link(home / "machines" / name / names.RUN))
                try:
                    link.call("keeper.status", timeout=_PATIENCE)
                except GuestError as refusal:
                    if refusal.code != "keeper_busy":
                        raise
                    continue  # it hears a moment later that whoever started the machine left
                stack.enter_context(opened.pop_all())
                links.append(link)
        yield links


def _code(done: subprocess.CompletedProcess[bytes]) -> str:
    code: str = json.loads(done.stderr.splitlines()[-1])["code"]
    return code


def test_one_command_more_than_a_keeper_serves_is_told_so_at_once(home: Path, running: str) -> None:
    with _crowd(home, running) as links:
        done = run_cli(home, "exec", "--json", running, "--", "true")
        assert (done.returncode, _code(done)) == (125, "keeper_busy")  # and not what is said of one that was waited for in vain
        assert insula.connect(home).get(running).state == "running"
        assert links[0].call("ping", data=b"x", timeout=_PATIENCE).raw("data") == b"x"
        links.pop().close()
        while (done := run_cli(home, "exec", "--json", running, "--", "true")).returncode:
            assert _code(done) == "keeper_busy"  # it hears a moment later of the one that left


@pytest.mark.parametrize("words", [("stop", "--timeout", "2"), ("stop", "--force"), ("delete", "--force")])
def test_a_crowd_keeps_nobody_from_ending_the_machine(home: Path, running: str, words: tuple[str, ...]) -> None:
    with _crowd(home, running):
        done = run_cli(home, *words, running, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
    if words[0] == "stop":
        assert insula.connect(home).get(running).state == "stopped"
    else:
        assert not (home / "machines" / running).exists()
