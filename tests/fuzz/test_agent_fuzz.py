"""The agent under fire: its parsers in one process, and the whole of it in a guest made of namespaces, both with sanitizers.

A story that fails is told again by its seed, which the failure names.
"""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from insula.guest import wire
from insula.host.native import native_sources
from insula.host.process import find_program
from tests.framework.points import Points
from tests.unit.native.agent_rig import Guest, Raw

_FUZZ = Path(__file__).parent
_SANITIZED = ("-std=gnu11", "-D_GNU_SOURCE", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
_PARSERS = ("channels", "put", "tree", "users", "files", "names", "stat", "spawn")

_VERBS = (
    "ping",
    "exec",
    "put",
    "get",
    "stat",
    "clock",
    "reseed",
    "identity",
    "renew",
    "prepare",
    "addresses",
    "freeze",
    "thaw",
    "sync",
    "hangup",
    "?",
)
_WORDS = (
    b"",
    b"/",
    b"/tmp",
    b"/etc",
    b"/usr/share/common-licenses",
    b"true",
    b"cat",
    b"head -c 300000 /dev/zero",
    b"\xff\0",
    b"x" * 5000,
)
_FIELDS = (
    "argv",
    "env",
    "cwd",
    "user",
    "tty",
    "path",
    "data",
    "time_ns",
    "machine_id",
    "hostname",
    "host_key",
    "mac",
    "dns",
    "address",
)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `parsers` and `agent`, both built to stop at the first thing that is wrong."""
    if find_program("gcc") is None:
        pytest.skip("sanitizers need gcc")
    folder = tmp_path_factory.mktemp("sanitized")
    native = native_sources()
    shared = sorted((native / "wire").glob("*.c"))
    parsers = [_FUZZ / "agent_parsers.c", *(native / "agent" / f"{name}.c" for name in _PARSERS)]
    for name, sources in (("parsers", parsers), ("agent", sorted((native / "agent").glob("*.c")))):
        subprocess.run(["gcc", *_SANITIZED, f"-I{native}", "-o", folder / name, *sources, *shared], check=True)
    return folder


def _parse(sanitized: Path, folder: Path, seed: int, stories: int) -> None:
    done = subprocess.run(
        [sanitized / "parsers", str(seed), str(stories), folder], capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_parsers(sanitized: Path, tmp_path: Path) -> None:
    _parse(sanitized, tmp_path, 0, 5000)


@pytest.mark.full
@pytest.mark.limit(600)
def test_parsers_at_length(sanitized: Path, tmp_path: Path, points: Points) -> None:
    _parse(sanitized, tmp_path, 1_000_000, points.many(100_000, 1_000_000))


def _request(chance: random.Random) -> bytes:
    fields: list[tuple[str, wire.Value]] = [("verb", chance.choice(_VERBS))]
    for _ in range(chance.randrange(6)):
        name = chance.choice(_FIELDS)
        number = name in ("tty", "time_ns")
        fields.append((name, chance.randrange(3) if number else chance.choice(_WORDS).replace(b"\0", b"").decode("latin-1")))
    return wire.encode_fields(fields)


def _chapter(chance: random.Random) -> bytes:
    """Some frames, mostly well formed, mostly about channels that may be open."""
    out = bytearray()
    for _ in range(chance.randrange(1, 12)):
        kind = chance.choice(
            (wire.OPEN, wire.OPEN, wire.DATA, wire.DATA, wire.EOF, wire.CREDIT, wire.SIGNAL, wire.RESIZE, wire.CLOSE, 77)
        )
        payload = (
            _request(chance)
            if kind == wire.OPEN
            else chance.choice((b"", b"INT", b"\xff" * 4, chance.randbytes(chance.randrange(3000))))
        )
        out += wire.encode_frame(wire.Frame(kind, chance.randrange(1, 20), payload, chance.randrange(4)))
    for _ in range(chance.choice((0, 0, 1, 4))):
        out[chance.randrange(len(out))] = chance.randrange(256)
    return bytes(out)


def _besiege(guest: Guest, seed: int, stories: int) -> None:
    for story in range(seed, seed + stories):
        chance = random.Random(story)
        try:
            guest.begin_life()
            for _ in range(chance.randrange(1, 5)):
                guest.port.sendall(_chapter(chance))
            guest.begin_life()
            raw = Raw(guest.port)
            raw.open(1, "thaw")
            assert "error" not in raw.result(1)
            raw.ping(2)
        except (OSError, AssertionError) as cause:
            raise AssertionError(f"story {story} ended the agent") from cause


@pytest.fixture
def guest(sanitized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guest:
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")  # it never ends, so that nothing is ever left over
    return Guest(os.fspath(sanitized / "agent"), tmp_path)


def test_the_whole_agent(guest: Guest) -> None:
    try:
        _besiege(guest, 0, 60)
    finally:
        guest.close()


@pytest.mark.full
@pytest.mark.limit(600)
def test_the_whole_agent_at_length(guest: Guest, points: Points) -> None:
    try:
        _besiege(guest, 1_000_000, points.many(1000, 6000))
    finally:
        guest.close()
