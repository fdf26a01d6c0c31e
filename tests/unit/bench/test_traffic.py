"""What moves the bytes that are measured, and the rows that say how fast."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import traffic
from bench.bars import BARS, _moved
from bench.hand import HandCard, qemu_command
from bench.pairs import Pairs
from bench.world import built
from tests.unit.bench.test_hand import BOARD, FOLDER, hand_image, values


@pytest.fixture(scope="module")
def flow() -> Path:
    return built("flow")


@pytest.fixture
def port(flow: Path) -> Iterator[int]:
    """Where `flow` serves."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
    with subprocess.Popen([flow, "serve", str(number)], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield number
        server.kill()


@pytest.mark.parametrize("verb", ["send", "take"])
def test_all_bytes_go_there_and_each_time_anew(flow: Path, port: int, verb: str) -> None:
    for size in (0, 1, 65_537, 3 << 20):
        done = subprocess.run([flow, verb, "127.0.0.1", str(port), str(size)], capture_output=True, text=True, check=True)
        assert 0 < float(done.stdout) < 60


def test_who_is_cut_off_says_no_number(flow: Path) -> None:
    """A server that hangs up halfway must not look fast."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        words = [str(flow), "take", "127.0.0.1", str(server.getsockname()[1]), "1000"]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as taker:
            connection, _ = server.accept()
            with connection:
                head = connection.recv(9, socket.MSG_WAITALL)
                connection.sendall(bytes(999))
            assert head == b"t" + (1000).to_bytes(8, "big")
            assert taker.communicate()[0] == b""
            assert taker.returncode == 1


def test_rows_say_speeds_and_have_the_limit_of_their_side() -> None:
    pairs = Pairs((0.5,) * 3, (0.4,) * 3)
    row = _moved(BARS["traffic"], "outside-up", "tap", pairs)
    speed = traffic.SIZE * 8 / 1e6 / 0.5
    assert (row.name, row.bar, row.met, row.ours) == ("traffic-outside-up", "≥ 0.95 × as fast", False, f"{speed:.0f} Mbit/s")
    row = _moved(BARS["traffic"], "host-down", "slirp", pairs)
    assert (row.name, row.bar, row.met) == ("traffic-host-down-slirp", "≥ 1.5 × as fast", False)
    row = _moved(BARS["traffic"], "published-up", "dnat", Pairs((0.44,) * 3, (0.4,) * 3))
    assert (row.name, row.bar, row.met) == ("traffic-published-up-dnat", "≥ 0.9 × as fast", True)


def test_a_card_by_hand_is_where_and_what_it_is_told() -> None:
    card = HandCard("tap,id=net0,ifname=hand1", "52:54:00:12:34:01", ("nsenter", "--net=/n", "--"))
    words = qemu_command(FOLDER, hand_image(), BOARD, card)
    assert words[:4] == ["nsenter", "--net=/n", "--", "qemu-system-x86_64"]
    assert values(words, "-netdev") == ["tap,id=net0,ifname=hand1"]
    assert [each for each in values(words, "-device") if "mac=52:54:00:12:34:01" in each] != []
