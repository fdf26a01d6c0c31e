"""What runs on the host of `traffic`, a namespace of its own: guests of ours and by hand, and bytes between them and others.

Told by JSON on its command line what there is (see `Told`), begins when a line comes, and prints seconds as JSON: for each way
the bytes went (``machines``, ``host-up``…; up is out of the guest) and each side (``ours``, ``tap``, ``slirp``, ``pasta``,
``dnat``).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

import insula
from bench.hand import AgentClient, HandCard, HandMachine
from insula.engines.qemu.probe import choose, learn
from insula.host import links
from insula.host.sockets import connect_unix
from insula.images.catalogue import get
from insula.store import names
from insula.store.machines import read_machine

_PORT: Final = 5000
_PUBLISHED, _REDIRECTED, _FORWARDED = 8080, 8081, 8082  # ours; by a rule; QEMU's own
_INSIDE: Final = "/tmp/flow"
_WARM: Final = 2  # times that do not count: an emulator has to translate what its guest does
_PATIENCE: Final = 120.0  # seconds
_HAND: Final = "10.66.0"  # the network by hand

Seconds = dict[str, dict[str, list[float]]]


class Told(msgspec.Struct, frozen=True):
    """``home`` has the image `tiny`, and room; ``outside`` is the pid of a process out there (0: only it can go there itself)."""

    home: str
    flow: str
    host4: str
    outside4: str
    outside: int
    rounds: int
    size: int


class Guest:
    """A guest in which `flow` serves; ``address`` is what others reach it by."""

    def __init__(self, client: AgentClient, flow: Path, address: str) -> None:
        self._client, self.address = client, address
        for part in (b"", flow.read_bytes()):  # the first makes it, whatever was there
            client.wait("sh", "-c", f"cat >{_INSIDE}; chmod 755 {_INSIDE}", given=part)
        served = client.begin(_INSIDE, "serve", str(_PORT))
        client.next_frame(served)  # it is ready

    def flow(self, *words: str | int) -> float:
        return float(self._client.wait(_INSIDE, *map(str, words)))


@contextlib.contextmanager
def ours(told: Told, name: str, *, publish: bool = False) -> Iterator[Guest]:
    there = insula.connect(told.home)
    ports = (f"{told.host4}:{_PUBLISHED}:{_PORT}",) if publish else ()
    machine = there.run("tiny", name=name, cold=True, publish=ports)
    try:
        folder = names.Home(Path(told.home)).machine(name)
        address = read_machine(folder).nics[0].ipv4
        assert address is not None
        with contextlib.closing(AgentClient(connect_unix(folder / names.RUN / names.KEEPER_SOCKET))) as client:
            yield Guest(client, Path(told.flow), address)
    finally:
        machine.delete(force=True)


@contextlib.contextmanager
def by_hand(told: Told, card: HandCard, address: str, gateway: str) -> Iterator[Guest]:
    home = names.Home(Path(told.home))
    folder = Path(told.home).parent / f"hand-{address}"
    folder.mkdir()
    with HandMachine(folder, get(home, "tiny"), choose(learn(home, "amd64"), None), card) as machine:
        machine.greet()
        machine.wait(
            "sh", "-c", f"ip address add {address}/24 dev eth0 && ip link set eth0 up && ip route add default via {gateway}"
        )
        yield Guest(machine, Path(told.flow), address)


_WAY_OUT: Final = f"""table ip hand {{
chain outside {{ type nat hook postrouting priority 100; oifname "%s" ip saddr {_HAND}.0/24 masquerade
}}
chain arriving {{ type nat hook prerouting priority -100; tcp dport {_REDIRECTED} dnat to {_HAND}.2:{_PORT}
}}
}}
"""


@contextlib.contextmanager
def network_by_hand(told: Told) -> Iterator[tuple[HandCard, HandCard]]:
    """A bridge with two taps: as root the host itself forwards for it, else pasta carries what goes out."""
    with contextlib.ExitStack() as stack:
        enter = () if told.outside else stack.enter_context(_namespace())
        lines = ["link add name hand type bridge stp_state 0 forward_delay 0", f"address add {_HAND}.1/24 dev hand"]
        for tap in ("hand1", "hand2"):
            lines += [f"tuntap add dev {tap} mode tap vnet_hdr", f"link set dev {tap} master hand up"]
        _told_to(enter, ["ip", "-batch", "-"], "\n".join([*lines, "link set dev hand up", "link set dev lo up"]))
        _told_to(enter, ["nft", "-f", "-"], _WAY_OUT % ("eth0" if told.outside else "up0"))
        for name, value in (("ipv4/ip_forward", 1), ("bridge/bridge-nf-call-iptables", 0)):
            _told_to(enter, ["sh", "-c", f"[ ! -e /proc/sys/net/{name} ] || echo {value} >/proc/sys/net/{name}"])
        first, second = (f"tap,id=net0,ifname=hand{each},script=no,downscript=no" for each in (1, 2))
        yield HandCard(first, "52:54:00:12:34:01", tuple(enter)), HandCard(second, "52:54:00:12:34:02", tuple(enter))


@contextlib.contextmanager
def _namespace() -> Iterator[tuple[str, ...]]:
    """One with pasta, as a user makes it; the first words of a command inside."""
    words = ["unshare", "--user", "--map-root-user", "--net", "--", "sh", "-c", "echo here; exec cat"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as inside:
        assert inside.stdout is not None
        inside.stdout.readline()
        enter = ("nsenter", f"--target={inside.pid}", "--user", "--net", "--preserve-credentials", "--")
        place = ["--userns", f"/proc/{inside.pid}/ns/user", "--netns", f"/proc/{inside.pid}/ns/net"]
        nothing = [word for option in ("--tcp-ports", "--udp-ports", "--tcp-ns", "--udp-ns") for word in (option, "none")]
        address = ["--address", "10.67.0.2", "--netmask", "24", "--gateway", "10.67.0.1", "--no-map-gw"]
        pasta = ["pasta", "--foreground", "--quiet", "--stderr", "--config-net", "--ns-ifname", "up0", *address, *nothing, *place]
        nobody = subprocess.DEVNULL
        with subprocess.Popen(pasta, start_new_session=True, stdin=nobody, stderr=nobody) as carrier:  # as `HandMachine`
            try:
                while subprocess.run([*enter, "ip", "link", "show", "up0"], capture_output=True, check=False).returncode:
                    assert carrier.poll() is None, "pasta ended"
                    time.sleep(0.02)  # nothing tells when the link is there
                yield enter
            finally:
                carrier.terminate()
                assert inside.stdin is not None
                inside.stdin.close()


def _told_to(enter: tuple[str, ...], words: list[str], data: str = "") -> None:
    subprocess.run([*enter, *words], input=data.encode() + b"\n", check=True, timeout=_PATIENCE)


def _here(told: Told, *words: str | int, outside: bool = False) -> float:
    """`flow` on this host, or out there."""
    enter = ["nsenter", f"--net=/proc/{told.outside}/ns/net", "--"] if outside else []
    argv = [*enter, told.flow, *map(str, words)]
    return float(subprocess.run(argv, check=True, stdout=subprocess.PIPE, timeout=_PATIENCE).stdout)


Ways = dict[str, dict[str, Callable[[int], float]]]


def ways(told: Told, stack: contextlib.ExitStack) -> Ways:
    """All that is to be measured: what moves so many bytes, and gives the seconds. Guests are on ``stack``."""
    root = told.outside != 0
    a, b = (stack.enter_context(ours(told, name, publish=root and name == "a")) for name in ("a", "b"))
    cards = stack.enter_context(network_by_hand(told))
    one, two = (
        stack.enter_context(by_hand(told, card, f"{_HAND}.{number}", f"{_HAND}.1")) for number, card in enumerate(cards, 2)
    )
    best = "tap" if root else "pasta"
    found: Ways = {
        "machines": {"ours": _between(a, b), "tap": _between(one, two)},
        "outside-up": {"ours": _out(told, a, "send"), best: _out(told, one, "send")},
        "outside-down": {"ours": _out(told, a, "take"), best: _out(told, one, "take")},
    }
    if root:
        forward = f"user,id=net0,hostfwd=tcp:127.0.0.1:{_FORWARDED}-:{_PORT}"
        slirp = stack.enter_context(by_hand(told, HandCard(forward), "10.0.2.15", "10.0.2.2"))
        for way, verb, opposite in (("up", "take", "send"), ("down", "send", "take")):
            found[f"outside-{way}"]["slirp"] = _out(told, slirp, opposite)
            found[f"host-{way}"] = {
                "ours": _in(told, verb, a.address, _PORT),
                "tap": _in(told, verb, one.address, _PORT),
                "slirp": _in(told, verb, "127.0.0.1", _FORWARDED),
            }
            found[f"published-{way}"] = {
                "ours": _in(told, verb, told.host4, _PUBLISHED, outside=True),
                "dnat": _in(told, verb, told.host4, _REDIRECTED, outside=True),
            }
    return found


def _between(a: Guest, b: Guest) -> Callable[[int], float]:
    return lambda size: a.flow("send", b.address, _PORT, size)


def _out(told: Told, guest: Guest, verb: str) -> Callable[[int], float]:
    return lambda size: guest.flow(verb, told.outside4, _PORT, size)


def _in(told: Told, verb: str, address: str, port: int, *, outside: bool = False) -> Callable[[int], float]:
    return lambda size: _here(told, verb, address, port, size, outside=outside)


def measured(told: Told) -> Seconds:
    """All ways in turns, and all sides of each one right after the other, another one being the first each time."""
    with contextlib.ExitStack() as stack:
        found = ways(told, stack)
        seconds: Seconds = {way: {side: [] for side in sides} for way, sides in found.items()}
        for move in [move for sides in found.values() for move in sides.values()] * _WARM:
            move(told.size)
        for number in range(told.rounds):
            for way, sides in found.items():
                order = list(sides)
                at = number % len(order)
                for side in [*order[at:], *order[:at]]:
                    seconds[way][side].append(sides[side](told.size))
        return seconds


def main() -> None:
    told = msgspec.json.decode(sys.argv[1], type=Told)
    answer = os.dup(1)
    os.dup2(2, 1)  # whatever anybody prints here is no result
    os.write(answer, b"here\n")
    sys.stdin.readline()
    assert links.has_default_route(2), "this host is not joined to the outside"
    os.write(answer, msgspec.json.encode(measured(told)))


if __name__ == "__main__":
    main()
